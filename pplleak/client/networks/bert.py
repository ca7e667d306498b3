"""A classifier of sentences of BERT's shape, with random weights (the extra `text`)."""

from __future__ import annotations

from torch import nn

from pplleak.client.networks import _text


def bert(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    vocabulary: int = 0,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    frozen: bool = False,
    lora: int = 0,
    lora_begun: bool = False,
) -> nn.Module:
    """A classifier of sentences of BERT's shape, with random weights (the extra `text`).

    Args:
        vocabulary: rows of the table of embeddings; 0: as many as the data have tokens.
        width: features of a token; the heads divide it.
        depth: layers.
        heads: attention heads.
        frozen: the table of embeddings is not trained, and nothing of its gradient is shared.
        lora: rank of adapters beside the attention's queries and values, which alone are trained, with the last layer;
            0: none, and all is trained.
        lora_begun: their B is drawn, too, as it is behind the first steps; at the start it is 0.
    """
    length, package = _text.sizes(input_shape, vocabulary, width, heads), _text.package()
    made = package.BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=length, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    body = package.BertModel(made)
    body.embeddings.word_embeddings.requires_grad_(not frozen)
    _text.adapted(body, ("query", "value"), lora, lora_begun)
    return _text.Classifier(body, width, num_classes, causal=False).eval()
