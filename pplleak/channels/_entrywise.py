"""Sums over the entries of an update whose slope is found together with the value.

A density such as Σ_i log p(g_i | u_i) needs the update's entries: a few passes of one operation over chains × entries,
each of which autograd would keep, tens of megabytes a pass, until the slope is asked for. Taking that memory from the
system costs more than the arithmetic. Here nothing is kept but the slope.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Density = Callable[..., Tensor]


def total(density: Density, u: Tensor, *others: Tensor) -> Tensor:
    """Σ_i density(u_i, …), float64, shape (*chains,).

    Args:
        density: elementwise, of entries u (*chains, D) and of what lies beside them. The sum runs in float64; the terms
            are in the precision that the density gives them.
        u: (*chains, D), the entries that slopes are taken in.
        others: tensors with an entry for each of u's, (D,) or (*chains, D).
    """
    if not u.requires_grad or any(t.requires_grad for t in others) or _differentiable(density):
        return _sum(density, u, *others)
    found: Tensor = _Total.apply(density, u, *others)
    return found


def _sum(density: Density, u: Tensor, *others: Tensor) -> Tensor:
    return density(u, *others).sum(-1, dtype=torch.float64)


def _differentiable(density: Density) -> bool:
    """Whether a density holds a tensor that slopes are wanted in, an inferred σ: only plain autograd sees it."""
    held = (cell.cell_contents for cell in getattr(density, "__closure__", None) or ())
    return any(isinstance(value, Tensor) and value.requires_grad for value in held)


class _Total(torch.autograd.Function):
    """The sum, with its slope in u beside it; a second derivative is plain autograd's."""

    @staticmethod
    def forward(ctx: Any, density: Density, u: Tensor, *others: Tensor) -> Tensor:
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            value = _sum(density, at, *others)
            (slope,) = torch.autograd.grad(value.sum(), at)
        ctx.density = density
        ctx.save_for_backward(slope, u, *others)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> Any:
        slope, u, *others = ctx.saved_tensors
        rest = [None] * len(others)
        if not torch.is_grad_enabled():
            return None, weight[..., None].to(slope.dtype) * slope, *rest
        (again,) = torch.autograd.grad(_sum(ctx.density, u, *others), u, weight, create_graph=True)
        return None, again, *rest
