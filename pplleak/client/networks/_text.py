"""What the networks of text share: their package, their masks, and what they read off their last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pplleak.data.vocabulary import PAD
from pplleak.errors import BadInput

HIDDEN = -1e9  # added to the attention's logits of what is not seen


def package() -> Any:
    """transformers, of which configurations are used, and never a name that it would fetch from somewhere."""
    try:
        import transformers  # takes seconds
    except ImportError as error:
        raise BadInput("networks of text need transformers: pip install 'pplleak[text]'") from error
    return transformers


def sizes(input_shape: tuple[int, ...], vocabulary: int, width: int, heads: int) -> int:
    """The longest sentence; raises BadInput for inputs that are no token ids, and a width that heads do not divide."""
    if vocabulary < 2 or len(input_shape) != 1:
        raise BadInput("this network takes the token ids of sentences: attack text, FILE.txt")
    if width % heads:
        raise BadInput(f"the width is split over the heads, and {width} is no multiple of {heads}")
    return input_shape[0]


class Classifier(nn.Module):
    """Token ids x (N, length), as floating-point numbers, -> logits (N, classes)."""

    def __init__(self, body: nn.Module, width: int, classes: int, causal: bool) -> None:
        super().__init__()
        self.body, self.causal = body, causal
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        ids = x.long()
        there = ids != PAD
        seen = there[:, None, None, :]
        if self.causal:
            length = ids.shape[1]
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        mask = (~seen).to(self.classifier.weight.dtype) * HIDDEN
        states = self.body(input_ids=ids, attention_mask=mask)
        if not self.causal:  # BERT's pooler reads [CLS]
            return self.classifier(states.pooler_output)
        last = (there.sum(1) - 1).clamp(min=0)  # of a sentence: [SEP], which has seen all before it
        picked = torch.arange(ids.shape[1], device=x.device) == last[:, None]
        return self.classifier((states.last_hidden_state * picked[..., None].to(mask.dtype)).sum(1))
