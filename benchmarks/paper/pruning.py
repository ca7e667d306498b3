"""A client that prunes its update by a mask which the server knows: u becomes m ⊙ u, for every model alike.

Random pruning with a shared seed (Konečný et al. 2016) hides no mask. Every adversary, baseline or Bayes, then matches
what was kept: its model, whatever it is, sees the update m ⊙ u, as lazily as the update itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pplleak.channels.masked import random_mask
from pplleak.client import Client
from pplleak.client.update import Update
from pplleak.density import surrogate
from pplleak.density.surrogate import Surrogate


@dataclass(frozen=True, eq=False)
class Kept:
    """m ⊙ u for an update u and a mask m (size,) of zeros and ones, float64; the methods are those of `Update`."""

    whole: Update
    mask: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.whole.shape

    @property
    def size(self) -> int:
        return self.whole.size

    def sqdist(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        weights = torch.ones_like(self.mask) if precision is None else precision.double()
        dropped = ((1 - self.mask) * weights * g.double().square()).sum(-1)
        return self.whole.sqdist(g, self.mask * weights) + dropped

    def inner(self, g: Tensor) -> Tensor:
        return self.whole.inner(self.mask.to(g.dtype) * g)

    def sqnorm(self) -> Tensor:
        return self.whole.sqdist(torch.zeros_like(self.mask), self.mask)

    def part(self, where: slice) -> Tensor:
        return self.materialise()[..., where]

    def materialise(self) -> Tensor:
        u = self.whole.materialise()
        return self.mask.to(u.dtype) * u

    def expand(self, shape: torch.Size) -> Kept:
        return Kept(self.whole.expand(shape), self.mask)


class _Prunes(Client):
    """u becomes m ⊙ u."""

    mask: Tensor

    def update(self, x: Tensor, y: Tensor, *_: Tensor | None, **__: Tensor | None) -> Update:
        return Kept(super().update(x, y), self.mask)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruning(_Prunes):
    """A client that shares m ⊙ u(x, y); mask: m (update_size,)."""

    mask: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class SmoothPruning(_Prunes, Surrogate):
    """A smooth client in the place of a pruning one."""

    mask: Tensor


def pruning(client: Client, rate: float, mask_seed: int) -> Pruning:
    """The client with every entry of its update pruned with probability `rate`, by the mask of `channels.Masked`."""
    mask = random_mask(client.update_size, rate, mask_seed).to(client.device)
    return Pruning(**{f.name: getattr(client, f.name) for f in fields(Client)}, mask=mask)


def smoothed(client: Client, beta: float) -> Surrogate:
    """`pplleak.density.surrogate.smoothed`, of a pruning client, too."""
    smooth = surrogate.smoothed(client, beta)
    if not isinstance(client, Pruning):
        return smooth
    return SmoothPruning(**{f.name: getattr(smooth, f.name) for f in fields(smooth)}, mask=client.mask)
