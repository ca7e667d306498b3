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


class Adapted(nn.Module):
    """A layer that stays as it is, and a correction of low rank that is trained: W x + c + B A x, with A (rank, fan_in)
    and B (fan_out, rank), which is 0 at the start (LoRA, Hu et al. 2022, section 4.1, with α = rank)."""

    def __init__(self, layer: Any, rank: int, begun: bool) -> None:
        super().__init__()
        self.layer = layer
        fan_out, fan_in = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]
        self.a, self.b = nn.Linear(fan_in, rank, bias=False), nn.Linear(rank, fan_out, bias=False)
        if not begun:
            nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x) + self.b(self.a(x))
        return made


def adapted(body: Any, names: tuple[str, ...], rank: int, begun: bool) -> None:
    """Freeze a network, and put adapters of a rank beside its layers of these names; rank 0 leaves it as it is."""
    if rank < 0:
        raise BadInput(f"the rank of LoRA's adapters must not be negative, not {rank}")
    if not rank:
        return
    body.requires_grad_(False)
    for module in list(body.modules()):
        for name, layer in list(module.named_children()):
            if name in names:
                setattr(module, name, Adapted(layer, rank, begun))


def _mask(ids: Tensor, causal: bool, dtype: torch.dtype) -> Tensor:
    """What is added to the attention's logits: HIDDEN at [PAD] and, of a causal network, at what comes later."""
    seen = (ids != PAD)[:, None, None, :]
    if causal:
        length = ids.shape[1]
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    return (~seen).to(dtype) * HIDDEN


class LanguageModel(nn.Module):
    """Token ids x (N, length), as floating-point numbers, -> logits of the next token (N, length, V), causal."""

    def __init__(self, body: Any, width: int, vocabulary: int, tied: bool, frozen: bool) -> None:
        super().__init__()
        self.body = body
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False).requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        ids, table = x.long(), self.body.wte.weight
        states = self.body(input_ids=ids, attention_mask=_mask(ids, True, table.dtype)).last_hidden_state
        return nn.functional.linear(states, table) if self.head is None else self.head(states)


class Classifier(nn.Module):
    """Token ids x (N, length), as floating-point numbers, -> logits (N, classes)."""

    def __init__(self, body: nn.Module, width: int, classes: int, causal: bool) -> None:
        super().__init__()
        self.body, self.causal = body, causal
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        ids = x.long()
        there = ids != PAD
        mask = _mask(ids, self.causal, self.classifier.weight.dtype)
        states = self.body(input_ids=ids, attention_mask=mask)
        if not self.causal:  # BERT's pooler reads [CLS]
            return self.classifier(states.pooler_output)
        last = (there.sum(1) - 1).clamp(min=0)  # of a sentence: [SEP], which has seen all before it
        picked = torch.arange(ids.shape[1], device=x.device) == last[:, None]
        return self.classifier((states.last_hidden_state * picked[..., None].to(mask.dtype)).sum(1))
