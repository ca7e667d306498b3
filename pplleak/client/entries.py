"""What of an update is no sum of outer products: rows of a table, and a small parameter's own entries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pplleak.client.factors import dot, in_double


@dataclass(frozen=True, eq=False)
class Lookup:
    """A table's share, whose rows are looked up: ∇W_v = Σ_r δ_r [w_r = v], of which all other rows are 0.

        ⟨G, ∇W⟩ = Σ_r δ_r · G_{w_r}        ‖∇W‖² = Σ_{r,s} [w_r = w_s] δ_r · δ_s

    ids      w (*shape, batch, positions)
    deltas   δ (*shape, batch, positions, width)
    rows of the table, and the slice `where` of the flat update that holds it
    """

    ids: Tensor
    deltas: Tensor
    rows: int
    where: slice

    @property
    def shape(self) -> torch.Size:
        return self.ids.shape[:-2]

    def _picked(self, g: Tensor) -> Tensor:
        """The rows of g (size,) at the ids, float64, in the shape of `deltas`."""
        return in_double(g, self.where.start, self.where.stop)[0].view(self.rows, -1)[self.ids]

    def inner(self, g: Tensor) -> Tensor:
        return dot(self._picked(g), self.deltas, 3)

    def sqnorm(self, precision: Tensor | None = None) -> Tensor:
        ids, d = self.ids.flatten(-2), self.deltas.double().flatten(-3, -2)
        weighed = d if precision is None else d * self._picked(precision).flatten(-3, -2)
        return ((ids[..., None] == ids[..., None, :]) * (d @ weighed.mT)).sum((-2, -1))

    def sqdist(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        whole, square = in_double(g, self.where.start, self.where.stop)
        if precision is None:
            return square - 2 * self.inner(g) + self.sqnorm()
        weight = precision[self.where].double()
        inner = dot((weight * whole).view(self.rows, -1)[self.ids], self.deltas, 3)
        return (weight * whole.square()).sum() - 2 * inner + self.sqnorm(precision)

    @property
    def slices(self) -> list[slice]:
        return [self.where]

    def apart(self) -> list[Lookup]:
        return [self]

    def entries(self) -> list[tuple[slice, Tensor]]:
        ids, d = self.ids.flatten(-2), self.deltas.flatten(-3, -2)
        made = d.new_zeros(*self.shape, self.rows, d.shape[-1])
        return [(self.where, made.scatter_add(-2, ids[..., None].expand(d.shape), d).flatten(-2))]

    def per_example(self) -> Lookup:
        return Lookup(self.ids.unsqueeze(-2), self.deltas.unsqueeze(-3), self.rows, self.where)

    def scaled(self, weights: Tensor) -> Lookup:
        return Lookup(self.ids, self.deltas * weights.to(self.deltas)[..., None, None], self.rows, self.where)

    def expand(self, shape: torch.Size) -> Lookup:
        ids, d = self.ids, self.deltas
        return Lookup(ids.expand(*shape, *ids.shape[-2:]), d.expand(*shape, *d.shape[-3:]), self.rows, self.where)


@dataclass(frozen=True, eq=False)
class Entries:
    """Small parameters' share (normalisations' scales, a class token), example by example, as it is.

    examples  (*shape, batch, n), whose sum over the batch fills the slices `where` of the flat update, one after the
              other
    """

    examples: Tensor
    where: tuple[slice, ...]

    @property
    def shape(self) -> torch.Size:
        return self.examples.shape[:-2]

    @property
    def _total(self) -> Tensor:
        return self.examples.sum(-2)

    def _beside(self, g: Tensor) -> Tensor:
        return torch.cat([g[where] for where in self.where])

    def sqdist(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        diff = self._beside(g) - self._total
        return dot(diff, diff if precision is None else self._beside(precision) * diff, 1)

    def inner(self, g: Tensor) -> Tensor:
        return dot(self._beside(g), self._total, 1)

    def sqnorm(self) -> Tensor:
        return dot(self._total, self._total, 1)

    @property
    def slices(self) -> list[slice]:
        return list(self.where)

    def apart(self) -> list[Entries]:
        """The same, a parameter each."""
        parts = self.examples.split([where.stop - where.start for where in self.where], -1)
        return [Entries(part, (where,)) for part, where in zip(parts, self.where, strict=True)]

    def entries(self) -> list[tuple[slice, Tensor]]:
        parts = self._total.split([where.stop - where.start for where in self.where], -1)
        return list(zip(self.where, parts, strict=True))

    def per_example(self) -> Entries:
        return replace(self, examples=self.examples.unsqueeze(-2))

    def scaled(self, weights: Tensor) -> Entries:
        return replace(self, examples=self.examples * weights.to(self.examples.dtype)[..., None])

    def expand(self, shape: torch.Size) -> Entries:
        return replace(self, examples=self.examples.expand(*shape, *self.examples.shape[-2:]))
