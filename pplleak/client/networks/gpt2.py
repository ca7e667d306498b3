"""A classifier of sentences, or a language model, of GPT-2's shape, with random weights (the extra `text`)."""

from __future__ import annotations

from torch import nn

from pplleak.client.networks import _text


def gpt2(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int = 0,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    frozen: bool = False,
    next_token: bool = False,
    tied: bool = True,
    lora: int = 0,
    lora_begun: bool = False,
) -> nn.Module:
    """A classifier of sentences, or a language model, of GPT-2's shape, with random weights (the extra `text`).

    A classifier reads the last token, as transformers' GPT2ForSequenceClassification does; a language model is its
    GPT2LMHeadModel, for the loss next_token.

    Args:
        vocabulary: rows of the table of embeddings; 0: as many as the data have tokens.
        width: features of a token; the heads divide it.
        depth: layers.
        heads: attention heads.
        frozen: the table of embeddings is not trained, and nothing of its gradient is shared.
        next_token: a logit for every token at every place, in place of the classes'.
        tied: (next_token) the output layer is the table of embeddings, as in GPT-2 itself; else a layer of its own.
        lora: rank of adapters beside the attention's projections, which alone are trained, with a classifier's last
            layer; 0: none, and all is trained.
        lora_begun: their B is drawn, too, as it is behind the first steps; at the start it is 0.
    """
    length, package = _text.sizes(input_shape, vocabulary, width, heads), _text.package()
    made = package.GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=depth, n_head=heads, n_positions=length, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager", bos_token_id=1, eos_token_id=1, use_cache=False,
    )  # fmt: skip
    body = package.GPT2Model(made)
    body.wte.requires_grad_(not frozen)
    _text.adapted(body, ("c_attn",), lora, lora_begun)
    if next_token:
        return _text.LanguageModel(body, width, vocabulary, tied, frozen=lora > 0).eval()
    return _text.Classifier(body, width, num_classes, causal=True).eval()
