"""What token ids stand for: a sentence is [CLS], its tokens, [SEP], and [PAD] up to one length.

x, what a network of text takes, is those ids, as floating-point numbers, which is what a client's inputs are: whole
numbers up to 2²⁴ are exact in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
PAD, BEGIN, END = range(len(SPECIAL))


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """tokens: what each id stands for, the three of `SPECIAL` first."""

    tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def framed(self, ids: Sequence[int], length: int) -> Tensor:
        """The ids of a sentence's own tokens as x (length,), long."""
        made = torch.full((length,), PAD)
        made[: len(ids) + 2] = torch.tensor([BEGIN, *ids, END])
        return made

    def words(self, ids: Iterable[int]) -> list[str]:
        """A sentence's tokens, without the special ones."""
        return [self.tokens[int(i)] for i in ids if int(i) >= len(SPECIAL)]


def lengths(ids: Tensor) -> Tensor:
    """How many tokens of their own sentences (…, length) have."""
    return (ids >= len(SPECIAL)).sum(-1)
