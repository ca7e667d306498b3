"""What is made of a tensor that stays (weights, an observation), and asked for at every step: kept as long as it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_KEPT: Any = WeakTensorKeyDictionary()  # tensor -> {what: (the tensor's version, what was made of it)}


def kept[Made](tensor: Tensor, what: Hashable, make: Callable[[], Made]) -> Made:
    """make(), or what it returned when the tensor was the same and asked for the same."""
    own = _KEPT.setdefault(tensor, {})
    if what not in own or own[what][0] != tensor._version:
        own[what] = tensor._version, make()
    made: Made = own[what][1]
    return made
