"""The update u(x, y) of a client, kept lazy until somebody asks for its entries.

For one example the gradient of a linear layer is an outer product, so for a batch

    ∇W = Σ_r δ_r a_rᵀ        ∇b = Σ_r δ_r

with a the layer's input, δ the loss's gradient at its output, and r running over examples (and over
positions: pixels of a convolution's output, tokens of a sequence). What a channel needs follows without ∇W:

    ⟨G, ∇W⟩ = Σ_r δ_rᵀ G a_r        ‖∇W‖² = Σ_{r,s} (δ_r·δ_s)(a_r·a_s)

Where there are more rows r than the weight has rows or columns (a convolution), ∇W itself is the cheaper
form, and the layer materialises it. Which of the two a layer takes changes the cost, never the result.

Every sum that ends in a scalar runs in float64, G a_r included: ‖g‖² − 2⟨g, u⟩ + ‖u‖² is a small difference of large
numbers, and a float32 energy is off by tenths of a nat at σ/‖g‖ = 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import torch
from torch import Tensor


class Update(Protocol):
    """What the client computes on its batch; `shape` are the leading (chain) dimensions, `size` the entries."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def size(self) -> int: ...
    def sqdist(self, g: Tensor) -> Tensor:
        """‖g − u‖² for g (size,), float64, shape `shape`."""
        ...

    def inner(self, g: Tensor) -> Tensor:
        """⟨g, u⟩ for g (size,), float64, shape `shape`."""
        ...

    def sqnorm(self) -> Tensor:
        """‖u‖², float64, shape `shape`."""
        ...

    def per_example_sqnorm(self) -> Tensor:
        """‖u_b‖² where u = Σ_b u_b runs over the examples, float64, shape (*shape, batch)."""
        ...

    def materialise(self) -> Tensor:
        """u itself, shape (*shape, size)."""
        ...

    def expand(self, shape: torch.Size) -> Update:
        """The same update seen under more leading dimensions (no copy)."""
        ...


def _dot(a: Tensor, b: Tensor, dims: int) -> Tensor:
    """Σ a·b over the last `dims` dimensions, in float64."""
    return (a.double() * b.double()).sum(tuple(range(-dims, 0)))


@lru_cache(maxsize=64)  # an observation stays, and is asked for at every step; a tensor's hash is its identity
def _in_double(g: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """g[start:stop] and its squared norm in float64."""
    part = g[start:stop].double()
    return part, part.square().sum()


@dataclass(frozen=True, eq=False)
class Factor:
    """One layer's share: rows a_r and δ_r whose outer products sum to the weight's gradient.

    inputs   a (*shape, batch, groups, positions, fan_in)
    deltas   δ (*shape, batch, groups, positions, fan_out / groups)
    weight, bias: the slices of the flat update that hold ∇W (groups, fan_out / groups, fan_in) and ∇b
    """

    inputs: Tensor
    deltas: Tensor
    weight: slice | None
    bias: slice | None

    @property
    def shape(self) -> torch.Size:
        return self.deltas.shape[:-4]

    @property
    def _blocks(self) -> tuple[int, int, int]:
        return self.inputs.shape[-3], self.deltas.shape[-1], self.inputs.shape[-1]

    @property
    def dense(self) -> bool:
        """True where ∇W is cheaper than the rows. With r rows, the Gram form costs r²(m + n) multiplications, ∇W r·m·n.

        In float32 on a CPU they take the same time at r (m + n) ≈ m·n / 3: the sums over rows run in float64.
        """
        rows = self.inputs.shape[-4] * self.inputs.shape[-2]
        _, fan_out, fan_in = self._blocks
        return 3 * rows * (fan_out + fan_in) > fan_out * fan_in

    def _rows(self, t: Tensor) -> Tensor:
        """(*shape, batch, groups, positions, k) -> (*shape, groups, batch·positions, k)."""
        return t.movedim(-4, -3).flatten(-3, -2)

    @cached_property
    def weight_gradient(self) -> Tensor:
        """∇W, shape (*shape, groups, fan_out / groups, fan_in)."""
        return self._rows(self.deltas).mT @ self._rows(self.inputs)

    @cached_property
    def bias_gradient(self) -> Tensor:
        """∇b, shape (*shape, fan_out)."""
        return self.deltas.sum((-4, -2)).flatten(-2)

    def _split(self, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = (None if s is None else _in_double(g, s.start, s.stop)[0] for s in (self.weight, self.bias))
        return None if weight is None else weight.view(self._blocks), bias

    @property
    def _lazy(self) -> bool:
        return self.weight is not None and not self.dense

    def _lazy_inner(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Σ_r δ_rᵀ (G a_r + g_b): a bias is a weight whose input is always 1."""
        # one group: a plain matrix, so that matmul folds all chains into one product instead of one each
        projected = self.inputs.double() @ (weight[0].mT if len(weight) == 1 else weight.mT)
        if bias is not None:
            projected = projected + bias.view(len(weight), 1, -1)
        return _dot(self.deltas, projected, 4)

    def _lazy_sqnorm(self) -> Tensor:
        """Σ_{r,s} (δ_r·δ_s)(a_r·a_s + 1), without the 1 where there is no bias."""
        one = 0 if self.bias is None else 1
        if self.inputs.shape[-4] * self.inputs.shape[-2] == 1:  # one row: the Gram matrices are numbers
            a, d = (t.double().square().sum((-4, -2, -1)) for t in (self.inputs, self.deltas))
            return ((a + one) * d).sum(-1)
        a, d = self._rows(self.inputs).double(), self._rows(self.deltas).double()
        return _dot(d @ d.mT, a @ a.mT + one, 3)

    def sqdist(self, g: Tensor) -> Tensor:
        weight, bias = self._split(g)
        if self._lazy:
            slices = [s for s in (self.weight, self.bias) if s is not None]
            constant = sum(_in_double(g, s.start, s.stop)[1] for s in slices)
            return constant - 2 * self.inner(g) + self._lazy_sqnorm()
        total = torch.zeros((), dtype=torch.float64, device=g.device)
        if weight is not None:
            diff = weight - self.weight_gradient
            total = total + _dot(diff, diff, 3)
        if bias is not None:
            diff = bias - self.bias_gradient
            total = total + _dot(diff, diff, 1)
        return total

    def inner(self, g: Tensor) -> Tensor:
        weight, bias = self._split(g)
        if self._lazy and weight is not None:
            return self._lazy_inner(weight, bias)
        total = torch.zeros((), dtype=torch.float64, device=g.device)
        if weight is not None:
            total = total + _dot(weight, self.weight_gradient, 3)
        if bias is not None:
            total = total + _dot(bias, self.bias_gradient, 1)
        return total

    def sqnorm(self) -> Tensor:
        if self._lazy:
            return self._lazy_sqnorm()
        total = torch.zeros((), dtype=torch.float64, device=self.deltas.device)
        if self.weight is not None:
            total = total + _dot(self.weight_gradient, self.weight_gradient, 3)
        if self.bias is not None:
            total = total + _dot(self.bias_gradient, self.bias_gradient, 1)
        return total

    def entries(self) -> list[tuple[slice, Tensor]]:
        """The slices of the flat update that this layer fills, each with its entries (*shape, n)."""
        found = [] if self.weight is None else [(self.weight, self.weight_gradient.flatten(-3))]
        return found if self.bias is None else [*found, (self.bias, self.bias_gradient)]

    def per_example(self) -> Factor:
        """The same factor with the batch moved into the leading dimensions: one example each."""
        return Factor(self.inputs.unsqueeze(-4), self.deltas.unsqueeze(-4), self.weight, self.bias)

    def expand(self, shape: torch.Size) -> Factor:
        def grow(t: Tensor) -> Tensor:
            return t.expand(*shape, *t.shape[-4:])

        return Factor(grow(self.inputs), grow(self.deltas), self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class DenseUpdate:
    """u materialised example by example: examples (*shape, batch, size), u = Σ_b examples_b."""

    examples: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.examples.shape[:-2]

    @property
    def size(self) -> int:
        return self.examples.shape[-1]

    def sqdist(self, g: Tensor) -> Tensor:
        diff = g - self.materialise()
        return _dot(diff, diff, 1)

    def inner(self, g: Tensor) -> Tensor:
        return _dot(g, self.materialise(), 1)

    def sqnorm(self) -> Tensor:
        u = self.materialise()
        return _dot(u, u, 1)

    def per_example_sqnorm(self) -> Tensor:
        return _dot(self.examples, self.examples, 1)

    def materialise(self) -> Tensor:
        return self.examples.sum(-2)

    def expand(self, shape: torch.Size) -> DenseUpdate:
        return DenseUpdate(self.examples.expand(*shape, *self.examples.shape[-2:]))


@dataclass(frozen=True, eq=False)
class Entries:
    """A small parameter's share (a normalisation's scale, a class token), example by example, as it is.

    examples  (*shape, batch, n), whose sum over the batch fills the slice `where` of the flat update
    """

    examples: Tensor
    where: slice

    @property
    def shape(self) -> torch.Size:
        return self.examples.shape[:-2]

    @property
    def _dense(self) -> DenseUpdate:
        return DenseUpdate(self.examples)

    def sqdist(self, g: Tensor) -> Tensor:
        return self._dense.sqdist(g[self.where])

    def inner(self, g: Tensor) -> Tensor:
        return self._dense.inner(g[self.where])

    def sqnorm(self) -> Tensor:
        return self._dense.sqnorm()

    def entries(self) -> list[tuple[slice, Tensor]]:
        return [(self.where, self._dense.materialise())]

    def per_example(self) -> Entries:
        return Entries(self.examples.unsqueeze(-2), self.where)

    def expand(self, shape: torch.Size) -> Entries:
        return Entries(self._dense.expand(shape).examples, self.where)


@dataclass(frozen=True, eq=False)
class LazyUpdate:
    """u as a tuple of factors, one a layer call (see the module's equations) or one a parameter of another kind."""

    factors: tuple[Factor | Entries, ...]
    size: int

    @property
    def shape(self) -> torch.Size:
        return self.factors[0].shape

    def sqdist(self, g: Tensor) -> Tensor:
        return torch.stack([f.sqdist(g).expand(self.shape) for f in self.factors]).sum(0)

    def inner(self, g: Tensor) -> Tensor:
        return torch.stack([f.inner(g) for f in self.factors]).sum(0)

    def sqnorm(self) -> Tensor:
        return torch.stack([f.sqnorm() for f in self.factors]).sum(0)

    def per_example_sqnorm(self) -> Tensor:
        return torch.stack([f.per_example().sqnorm() for f in self.factors]).sum(0)

    def materialise(self) -> Tensor:
        parts = [part for f in self.factors for part in f.entries()]
        u = parts[0][1].new_zeros(*self.shape, self.size)
        for where, values in parts:  # slices of different factors never overlap
            u[..., where] = values
        return u

    def expand(self, shape: torch.Size) -> LazyUpdate:
        return LazyUpdate(tuple(f.expand(shape) for f in self.factors), self.size)
