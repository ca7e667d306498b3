"""The update u(x, y) of a client, kept lazy until somebody asks for its entries.

For one example the gradient of a linear layer is an outer product, so for a batch

    ∇W = Σ_r δ_r a_rᵀ        ∇b = Σ_r δ_r

with a the layer's input, δ the loss's gradient at its output, and r running over examples (and over
positions: pixels of a convolution's output, tokens of a sequence). What a channel needs follows without ∇W:

    ⟨G, ∇W⟩ = Σ_r δ_rᵀ G a_r        ‖∇W‖² = Σ_{r,s} (δ_r·δ_s)(a_r·a_s)

Every sum that ends in a scalar runs in float64, G a_r included: ‖g‖² − 2⟨g, u⟩ + ‖u‖² is a small difference of large
numbers, and a float32 energy is off by tenths of a nat at σ/‖g‖ = 1e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pplleak.client.entries import Entries, Lookup
from pplleak.client.factors import Factor, dot, square


class Update(Protocol):
    """What the client computes on its batch; `shape` are the leading (chain) dimensions, `size` the entries."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def size(self) -> int: ...
    def sqdist(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        """Σ_i λ_i (g_i − u_i)² for g and λ (size,), float64, shape `shape`; without a precision λ, ‖g − u‖²."""
        ...

    def sqdists(self, g: Tensor, where: Sequence[slice]) -> Tensor:
        """‖g − u‖² over every slice of the flat update, each of whole parameters, float64, shape (*shape, L)."""
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

    def part(self, where: slice) -> Tensor:
        """The entries of one parameter, whose slice of the flat update is `where`, shape (*shape, n)."""
        ...

    def scaled(self, weights: Tensor) -> Update:
        """Σ_b w_b u_b for weights (*shape, batch): what clipping every example makes of u."""
        ...

    def expand(self, shape: torch.Size) -> Update:
        """The same update seen under more leading dimensions (no copy)."""
        ...


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
        diff = self.materialise() - g
        return square(diff) if precision is None else dot(diff, precision * diff, 1)

    def sqdists(self, g: Tensor, where: Sequence[slice]) -> Tensor:
        diff = self.materialise() - g
        return torch.stack([square(diff[..., s]) for s in where], -1)

    def inner(self, g: Tensor) -> Tensor:
        return dot(g, self.materialise(), 1)

    def sqnorm(self) -> Tensor:
        return square(self.materialise())

    def per_example_sqnorm(self) -> Tensor:
        return square(self.examples)

    def materialise(self) -> Tensor:
        return self.examples.squeeze(-2) if self.examples.shape[-2] == 1 else self.examples.sum(-2)

    def part(self, where: slice) -> Tensor:
        return self.examples[..., where].sum(-2)

    def scaled(self, weights: Tensor) -> DenseUpdate:
        return DenseUpdate(self.examples * weights.to(self.examples.dtype)[..., None])

    def expand(self, shape: torch.Size) -> DenseUpdate:
        return DenseUpdate(self.examples.expand(*shape, *self.examples.shape[-2:]))


@dataclass(frozen=True, eq=False)
class LazyUpdate:
    """u as a tuple of factors, one a layer call (see the module's equations) or one a parameter of another kind."""

    factors: tuple[Factor | Lookup | Entries, ...]
    size: int

    @property
    def shape(self) -> torch.Size:
        return self.factors[0].shape

    def sqdist(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        return torch.stack([f.sqdist(g, precision).expand(self.shape) for f in self.factors]).sum(0)

    def sqdists(self, g: Tensor, where: Sequence[slice]) -> Tensor:
        found = [(one.slices[0].start, one.sqdist(g).expand(self.shape)) for f in self.factors for one in f.apart()]
        inside = [[d for start, d in found if start in range(s.start, s.stop)] for s in where]
        return torch.stack([torch.stack(parts).sum(0) for parts in inside], -1)

    def inner(self, g: Tensor) -> Tensor:
        return torch.stack([f.inner(g) for f in self.factors]).sum(0)

    def sqnorm(self) -> Tensor:
        return torch.stack([f.sqnorm() for f in self.factors]).sum(0)

    def per_example_sqnorm(self) -> Tensor:
        return torch.stack([f.per_example().sqnorm() for f in self.factors]).sum(0)

    def materialise(self) -> Tensor:
        parts = [part for f in self.factors for part in f.entries()]  # their slices never overlap, and leave no gap
        return torch.cat([values for _, values in sorted(parts, key=lambda part: part[0].start)], -1)

    def part(self, where: slice) -> Tensor:
        for f in self.factors:
            if isinstance(f, Factor) and f.bias == where:
                return f.bias_gradient  # without ∇W beside it
        return next(values for f in self.factors if where in f.slices for at, values in f.entries() if at == where)

    def scaled(self, weights: Tensor) -> LazyUpdate:
        return LazyUpdate(tuple(f.scaled(weights) for f in self.factors), self.size)

    def expand(self, shape: torch.Size) -> LazyUpdate:
        return LazyUpdate(tuple(f.expand(shape) for f in self.factors), self.size)
