"""The update u(x, y) of a client, kept lazy until somebody asks for its entries.

For one example the gradient of a linear layer is an outer product, so for a batch

    ∇W = Σ_r δ_r a_rᵀ        ∇b = Σ_r δ_r

with a the layer's input, δ the loss's gradient at its output, and r running over examples (and over
positions: pixels of a convolution's output, tokens of a sequence). What a channel needs follows without ∇W:

    ⟨G, ∇W⟩ = Σ_r δ_rᵀ G a_r        ‖∇W‖² = Σ_{r,s} (δ_r·δ_s)(a_r·a_s)

So does a distance with a precision λ per entry, for one row: Σ_ij λ_ij (δ_i a_j)² = (δ²)ᵀ λ (a²).

Where there are more rows r than the weight has rows or columns (a convolution), ∇W itself is the cheaper
form, and the layer materialises it. Which of the two a layer takes changes the cost, never the result.

Every sum that ends in a scalar runs in float64: at σ/‖g‖ = 1e-3 a float32 energy is off by tenths of a nat.
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
    def sqdist(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        """Σ_i λ_i (g_i − u_i)² for g and λ (size,), float64, shape `shape`; without a precision λ, ‖g − u‖²."""
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

    def scaled(self, weights: Tensor) -> Update:
        """Σ_b w_b u_b for weights (*shape, batch): what clipping every example makes of u."""
        ...

    def expand(self, shape: torch.Size) -> Update:
        """The same update seen under more leading dimensions (no copy)."""
        ...


def _dot(a: Tensor, b: Tensor, dims: int) -> Tensor:
    """Σ a·b over the last `dims` dimensions, in float64."""
    return (a.double() * b.double()).sum(tuple(range(-dims, 0)))


@lru_cache(maxsize=64)  # an observation stays, and is asked for at every step; a tensor's hash is its identity
def _constant_sqnorm(g: Tensor, start: int, stop: int) -> Tensor:
    """‖g[start:stop]‖² in float64."""
    return _dot(g[start:stop], g[start:stop], 1)


def _bilinear(deltas: Tensor, weight: Tensor, inputs: Tensor) -> Tensor:
    """Σ_r δ_rᵀ W a_r for W (groups, fan_out / groups, fan_in), in float64."""
    # one group: a plain matrix, so that matmul folds all chains into one product instead of one each
    projected = inputs @ (weight[0].mT if len(weight) == 1 else weight.mT)
    return _dot(deltas, projected, 4)


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
    def _blocks(self) -> tuple[int, int, int]:
        return self.inputs.shape[-3], self.deltas.shape[-1], self.inputs.shape[-1]

    @property
    def _row_count(self) -> int:
        return self.inputs.shape[-4] * self.inputs.shape[-2]

    @property
    def dense(self) -> bool:
        """True where ∇W is cheaper than the rows: the Gram form costs r²(m + n), ∇W costs r·m·n."""
        _, fan_out, fan_in = self._blocks
        return self._row_count * (fan_out + fan_in) > fan_out * fan_in

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
        weight = None if self.weight is None else g[self.weight].view(self._blocks)
        return weight, None if self.bias is None else g[self.bias]

    def _weight_inner(self, weight: Tensor) -> Tensor:
        if self.dense:
            return _dot(weight, self.weight_gradient, 3)
        return _bilinear(self.deltas, weight, self.inputs)

    def _weight_sqnorm(self) -> Tensor:
        if self.dense:
            return _dot(self.weight_gradient, self.weight_gradient, 3)
        a, d = self._rows(self.inputs).double(), self._rows(self.deltas).double()
        if a.shape[-2] == 1:  # one row: the Gram matrices are numbers
            return (a.square().sum((-2, -1)) * d.square().sum((-2, -1))).sum(-1)
        return _dot(d @ d.mT, a @ a.mT, 3)

    def sqdist(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        _, bias = self._split(g)
        weight_by, bias_by = (None, None) if precision is None else self._split(precision)
        total = torch.zeros((), dtype=torch.float64, device=g.device)
        if self.weight is not None:
            total = total + self._weight_sqdist(g, weight_by)
        if bias is not None:
            diff = bias - self.bias_gradient
            total = total + _dot(diff, diff if bias_by is None else bias_by * diff, 1)
        return total

    def _weight_sqdist(self, g: Tensor, precision: Tensor | None) -> Tensor:
        weight, _ = self._split(g)
        assert weight is not None and self.weight is not None
        if precision is not None and bool((precision == precision[0, 0, 0]).all()):  # one σ for the whole layer
            return precision[0, 0, 0] * self._weight_sqdist(g, None)
        if self.dense or (precision is not None and self._row_count > 1):
            diff = weight - self.weight_gradient
            return _dot(diff, diff if precision is None else precision * diff, 3)
        if precision is None:
            constant = _constant_sqnorm(g, self.weight.start, self.weight.stop)
            return constant - 2 * self._weight_inner(weight) + self._weight_sqnorm()
        by = precision.to(self.inputs.dtype)
        square = _bilinear(self.deltas.square(), by, self.inputs.square())
        return _dot(by * weight, weight, 3) - 2 * self._weight_inner(by * weight) + square

    def inner(self, g: Tensor) -> Tensor:
        weight, bias = self._split(g)
        total = torch.zeros((), dtype=torch.float64, device=g.device)
        if weight is not None:
            total = total + self._weight_inner(weight)
        if bias is not None:
            total = total + _dot(bias, self.bias_gradient, 1)
        return total

    def sqnorm(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.deltas.device)
        if self.weight is not None:
            total = total + self._weight_sqnorm()
        if self.bias is not None:
            total = total + _dot(self.bias_gradient, self.bias_gradient, 1)
        return total

    def per_example(self) -> Factor:
        """The same factor with the batch moved into the leading dimensions: one example each."""
        return Factor(self.inputs.unsqueeze(-4), self.deltas.unsqueeze(-4), self.weight, self.bias)

    def scaled(self, weights: Tensor) -> Factor:
        deltas = self.deltas * weights.to(self.deltas.dtype)[..., None, None, None]
        return Factor(self.inputs, deltas, self.weight, self.bias)

    def expand(self, shape: torch.Size) -> Factor:
        def grow(t: Tensor) -> Tensor:
            return t.expand(*shape, *t.shape[-4:])

        return Factor(grow(self.inputs), grow(self.deltas), self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class LazyUpdate:
    """u as a tuple of factors, one a layer call; see the module's equations."""

    factors: tuple[Factor, ...]
    size: int

    @property
    def shape(self) -> torch.Size:
        return self.factors[0].deltas.shape[:-4]

    def sqdist(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        return torch.stack([f.sqdist(g, precision).expand(self.shape) for f in self.factors]).sum(0)

    def inner(self, g: Tensor) -> Tensor:
        return torch.stack([f.inner(g) for f in self.factors]).sum(0)

    def sqnorm(self) -> Tensor:
        return torch.stack([f.sqnorm() for f in self.factors]).sum(0)

    def per_example_sqnorm(self) -> Tensor:
        return torch.stack([f.per_example().sqnorm() for f in self.factors]).sum(0)

    def materialise(self) -> Tensor:
        parts = {}
        for f in self.factors:  # their slices never overlap, and leave no gap
            if f.weight is not None:
                parts[f.weight.start] = f.weight_gradient.flatten(-3)
            if f.bias is not None:
                parts[f.bias.start] = f.bias_gradient
        return torch.cat([parts[start] for start in sorted(parts)], -1)

    def scaled(self, weights: Tensor) -> LazyUpdate:
        return LazyUpdate(tuple(f.scaled(weights) for f in self.factors), self.size)

    def expand(self, shape: torch.Size) -> LazyUpdate:
        return LazyUpdate(tuple(f.expand(shape) for f in self.factors), self.size)


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

    def sqdist(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        diff = g - self.materialise()
        return _dot(diff, diff if precision is None else precision * diff, 1)

    def inner(self, g: Tensor) -> Tensor:
        return _dot(g, self.materialise(), 1)

    def sqnorm(self) -> Tensor:
        u = self.materialise()
        return _dot(u, u, 1)

    def per_example_sqnorm(self) -> Tensor:
        return _dot(self.examples, self.examples, 1)

    def materialise(self) -> Tensor:
        return self.examples.sum(-2)

    def scaled(self, weights: Tensor) -> DenseUpdate:
        return DenseUpdate(self.examples * weights.to(self.examples.dtype)[..., None])

    def expand(self, shape: torch.Size) -> DenseUpdate:
        return DenseUpdate(self.examples.expand(*shape, *self.examples.shape[-2:]))
