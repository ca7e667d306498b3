"""One layer's share of an update as rows of outer products; what else there is lies in `pplleak.client.entries`.

    ∇W = Σ_r δ_r a_rᵀ        ∇b = Σ_r δ_r        ⟨G, ∇W⟩ = Σ_r δ_rᵀ G a_r        ‖∇W‖² = Σ_{r,s} (δ_r·δ_s)(a_r·a_s)

A kernel's window (`pplleak.client.windows`) leaves out columns of ∇W that are 0, and a holds the others alone.
Where there are more rows r than the weight has rows or columns (a convolution), ∇W itself is the cheaper form, and the
layer materialises it. Which of the two a layer takes changes the cost, never the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from pplleak.client.kept import kept
from pplleak.client.windows import Window


def dot(a: Tensor, b: Tensor, dims: int) -> Tensor:
    """Σ a·b over the last `dims` dimensions, in float64."""
    return (a.double() * b.double()).sum(tuple(range(-dims, 0)))


class _Square(torch.autograd.Function):
    """Σ_i d_i² over the last dimension: the squares and their sum in float64, a block at a time, the slope 2 d in d's
    own precision. Autograd would keep and pass through eight bytes an entry."""

    BLOCK = 2**15  # entries that stay in a core's cache

    @staticmethod
    def forward(ctx: Any, d: Tensor) -> Tensor:
        ctx.save_for_backward(d)
        return torch.stack([dot(part, part, 1) for part in d.split(_Square.BLOCK, -1)]).sum(0)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> Tensor:
        (d,) = ctx.saved_tensors
        return (2 * weight).to(d.dtype)[..., None] * d


def square(d: Tensor) -> Tensor:
    """‖d‖² over the last dimension, in float64, of as many entries as there are; no more memory than d's."""
    found: Tensor = _Square.apply(d)
    return found


def in_double(g: Tensor, start: int, stop: int, window: Window | None = None) -> tuple[Tensor, Tensor]:
    """g[start:stop], of a kernel what the window shows, and its squared norm in float64."""

    def made() -> tuple[Tensor, Tensor]:
        part = g[start:stop] if window is None else window.of_fan(g[start:stop])
        part = part.double()
        return part, part.square().sum()

    return kept(g, (start, stop, window), made)


def _unseen(g: Tensor, precision: Tensor | None, start: int, stop: int, window: Window) -> Tensor:
    """Σ_i λ_i g_i² over the entries of a kernel that the window does not show, float64."""

    def made() -> Tensor:
        hidden = g[start:stop].double() - window.filled_fan(window.of_fan(g[start:stop])).double()
        return dot(hidden, hidden if precision is None else precision[start:stop] * hidden, 1)

    return kept(g, ("unseen", start, stop, window), made) if precision is None else made()


def _bilinear(deltas: Tensor, weight: Tensor, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
    """Σ_r δ_rᵀ (W a_r + b) for W (groups, fan_out / groups, fan_in), all of it in float64."""
    # one group: a plain matrix, so that matmul folds all chains into one product instead of one each
    projected = inputs @ (weight[0].mT if len(weight) == 1 else weight.mT)
    if bias is not None:
        projected = projected + bias.view(len(weight), 1, -1)
    return dot(deltas, projected, 4)


@dataclass(frozen=True, eq=False)
class Factor:
    """One layer's share: rows a_r and δ_r whose outer products sum to the weight's gradient.

    inputs   a (*shape, batch, groups, positions, fan_in)
    deltas   δ (*shape, batch, groups, positions, fan_out / groups)
    weight, bias: the slices of the flat update that hold ∇W (groups, fan_out / groups, fan_in) and ∇b
    window: what of a convolution's kernel the inputs hold, so that fan_in counts that alone; None: all of it
    """

    inputs: Tensor
    deltas: Tensor
    weight: slice | None
    bias: slice | None
    window: Window | None = None

    @property
    def shape(self) -> torch.Size:
        return self.deltas.shape[:-4]

    @property
    def _blocks(self) -> tuple[int, int, int]:
        return self.inputs.shape[-3], self.deltas.shape[-1], self.inputs.shape[-1]

    @property
    def _row_count(self) -> int:
        return self.inputs.shape[-4] * self.inputs.shape[-2]

    @property
    def dense(self) -> bool:
        """True where ∇W is cheaper than the rows. With r rows, the Gram form costs r²(m + n) multiplications, ∇W r·m·n.

        In float32 on a CPU they take the same time at r (m + n) ≈ m·n / 3: the sums over rows run in float64.
        """
        _, fan_out, fan_in = self._blocks
        return 3 * self._row_count * (fan_out + fan_in) > fan_out * fan_in

    def _rows(self, t: Tensor) -> Tensor:
        """(*shape, batch, groups, positions, k) -> (*shape, groups, batch·positions, k)."""
        return t.movedim(-4, -3).flatten(-3, -2)

    @cached_property
    def weight_gradient(self) -> Tensor:
        """∇W, what the window shows of it, shape (*shape, groups, fan_out / groups, fan_in)."""
        return self._rows(self.deltas).mT @ self._rows(self.inputs)

    @cached_property
    def bias_gradient(self) -> Tensor:
        """∇b, shape (*shape, fan_out)."""
        return self.deltas.sum((-4, -2)).flatten(-2)

    def _seen(self, g: Tensor) -> tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]:
        """What lies beside ∇W and beside ∇b in g, each with its squared norm, float64."""
        weight = self.weight and in_double(g, self.weight.start, self.weight.stop, self.window)
        bias = self.bias and in_double(g, self.bias.start, self.bias.stop)
        return weight, bias

    def _split(self, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = (part and part[0] for part in self._seen(g))
        return None if weight is None else weight.view(self._blocks), bias

    @cached_property
    def _wide(self) -> tuple[Tensor, Tensor]:
        """a and δ in float64, in which every sum over rows runs; patches lie the other way round, and are turned."""
        return self.inputs.contiguous().double(), self.deltas.double()

    @property
    def _lazy(self) -> bool:
        return self.weight is not None and not self.dense

    def _gram(self, one: int) -> Tensor:
        """Σ_{r,s} (δ_r·δ_s)(a_r·a_s + one): ‖∇W‖², and with one = 1 also ‖∇b‖², a weight whose input is always 1."""
        if self._row_count == 1:  # the Gram matrices are numbers
            a, d = (t.square().sum((-4, -2, -1)) for t in self._wide)
            return ((a + one) * d).sum(-1)
        a, d = (self._rows(t) for t in self._wide)
        return dot(d @ d.mT, a @ a.mT + one, 3)

    def _lazy_sqnorm(self) -> Tensor:
        return self._gram(0 if self.bias is None else 1)

    def sqdist(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        if precision is not None:
            return self._weighted_sqdist(g, precision)
        if self._lazy:
            constant = sum((part[1] for part in self._seen(g) if part is not None), self._hidden(g))
            return constant - 2 * self.inner(g) + self._lazy_sqnorm()
        diffs = [part - own for part, own in self._beside(g)]
        return sum((dot(d, d, d.dim() - len(self.shape)) for d in diffs), self._hidden(g))

    def _hidden(self, g: Tensor, precision: Tensor | None = None) -> Tensor:
        """Σ_i λ_i (g_i − 0)² over the entries of ∇W that are 0, because the window does not show them."""
        if self.weight is None or self.window is None:
            return self._zero
        return _unseen(g, precision, self.weight.start, self.weight.stop, self.window)

    def _weighted_sqdist(self, g: Tensor, precision: Tensor) -> Tensor:
        """Σ_i precision_i (g_i − u_i)²."""
        weight, bias = self._split(g)
        by, bias_by = self._split(precision)
        total = self._hidden(g, precision)
        if weight is not None and by is not None:
            total = total + self._weighted_by(weight, by)
        if bias is not None and bias_by is not None:
            diff = bias - self.bias_gradient
            total = total + dot(diff, bias_by * diff, 1)
        return total

    def _weighted_by(self, weight: Tensor, by: Tensor) -> Tensor:
        """The weight's share of it: lazy for one row, and where the weight has one precision throughout."""
        with disable_proxy_modes_tracing():  # precisions do not depend on x: a recording may look at them
            one = bool((by == by[0, 0, 0]).all())
        if self.dense or not (one or self._row_count == 1):
            diff = weight - self.weight_gradient
            return dot(diff, by * diff, 3)
        inputs, deltas = self._wide
        if one:
            return by[0, 0, 0] * (dot(weight, weight, 3) - 2 * _bilinear(deltas, weight, inputs) + self._gram(0))
        square = _bilinear(deltas.square(), by, inputs.square())
        return dot(by * weight, weight, 3) - 2 * _bilinear(deltas, by * weight, inputs) + square

    @property
    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.deltas.device)

    def _beside(self, g: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The parts of g that lie beside ∇W and ∇b, with them; those that the layer has."""
        weight, bias = self._split(g)
        parts = [] if weight is None else [(weight, self.weight_gradient)]
        return parts if bias is None else [*parts, (bias, self.bias_gradient)]

    def inner(self, g: Tensor) -> Tensor:
        weight, bias = self._split(g)
        if self._lazy and weight is not None:
            inputs, deltas = self._wide
            return _bilinear(deltas, weight, inputs, bias)
        return sum((dot(part, own, part.dim()) for part, own in self._beside(g)), self._zero)

    def sqnorm(self) -> Tensor:
        if self._lazy:
            return self._lazy_sqnorm()
        return sum((dot(part, part, 1) for _, part in self.entries()), self._zero)

    @property
    def slices(self) -> list[slice]:
        """Those of the flat update that this layer fills."""
        return [s for s in (self.weight, self.bias) if s is not None]

    def apart(self) -> list[Factor]:
        """The same as one factor for each of its parameters."""
        parts = replace(self, bias=None), replace(self, weight=None)
        return [part for part in parts if part.slices]

    def entries(self) -> list[tuple[slice, Tensor]]:
        """The slices of the flat update that this layer fills, each with its entries (*shape, n)."""
        parts: list[tuple[slice, Tensor]] = []
        if self.weight is not None:
            own = self.weight_gradient
            parts = [(self.weight, (own if self.window is None else self.window.filled_fan(own)).flatten(-3))]
        return parts if self.bias is None else [*parts, (self.bias, self.bias_gradient)]

    def per_example(self) -> Factor:
        """The same factor with the batch moved into the leading dimensions: one example each."""
        return replace(self, inputs=self.inputs.unsqueeze(-4), deltas=self.deltas.unsqueeze(-4))

    def scaled(self, weights: Tensor) -> Factor:
        return replace(self, deltas=self.deltas * weights.to(self.deltas.dtype)[..., None, None, None])

    def expand(self, shape: torch.Size) -> Factor:
        def grow(t: Tensor) -> Tensor:
            return t.expand(*shape, *t.shape[-4:])

        return replace(self, inputs=grow(self.inputs), deltas=grow(self.deltas))
