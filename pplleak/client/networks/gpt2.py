"""A classifier of sentences of GPT-2's shape, with random weights (the extra `text`)."""

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
) -> nn.Module:
    """A classifier of sentences of GPT-2's shape, with random weights (the extra `text`).

    It reads the last token, as transformers' GPT2ForSequenceClassification does.

    Args:
        vocabulary: rows of the table of embeddings; 0: as many as the data have tokens.
        width: features of a token; the heads divide it.
        depth: layers.
        heads: attention heads.
        frozen: the table of embeddings is not trained, and nothing of its gradient is shared.
    """
    length, package = _text.sizes(input_shape, vocabulary, width, heads), _text.package()
    made = package.GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=depth, n_head=heads, n_positions=length, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager", bos_token_id=1, eos_token_id=1, use_cache=False,
    )  # fmt: skip
    body = package.GPT2Model(made)
    body.wte.requires_grad_(not frozen)
    return _text.Classifier(body, width, num_classes, causal=True).eval()
