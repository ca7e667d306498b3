"""Sums over many entries of smooth functions of one number each, by few nodes that stand for all of them.

    Σ_i m_i f(s_i) = Σ_k w_k f(x_k),   w_k = Σ_i m_i ℓ_k(s_i)

with ℓ_k the Lagrange polynomials of Chebyshev's nodes x_k: exact for polynomials f, and for an analytic f as near as
its interpolation (Trefethen 2013, theorem 8.2: an error of ρ^−K, ρ that of the largest ellipse without singularity).
The weights, which may be negative, hold all that depends on the entries, slopes included. ℓ_k is expanded in
Chebyshev's polynomials T_j, whose sums over the entries are made by their recurrence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def nodes_for(reach: float, error: float) -> int:
    """K at which a function whose nearest singularity is `reach` half intervals off its middle, straight up, is
    interpolated to about `error`: ρ = reach + √(reach² + 1)."""
    return math.ceil(-math.log(error) / math.asinh(reach))


def gather(s: Tensor, masks: Tensor, edges: list[float], count: int) -> tuple[Tensor, Tensor]:
    """Nodes x (pieces · count,) and weights (*chains, kinds, pieces · count), for functions smooth between edges.

    Args:
        s: (*chains, D), in [edges[0], edges[-1]].
        masks: (*chains, kinds, D), the m_i of each kind of entries; no slope is taken in them.
        edges: ascending, at least two.
    """
    angle = math.pi * (torch.arange(count, dtype=s.dtype, device=s.device) + 0.5) / count
    j = torch.arange(count, dtype=s.dtype, device=s.device)
    lagrange = torch.cos(j[:, None] * angle) * torch.where(j > 0, 2.0, 1.0)[:, None] / count  # (j, k): ℓ_k by T_j
    nodes, weights = [], []
    for low, high in itertools.pairwise(edges):
        inside = (s >= low) & (s <= high if high == edges[-1] else s < high)
        z = ((2 * s - low - high) / (high - low)).clamp(-1, 1)
        sums: Tensor = _Sums.apply(z, masks * inside[..., None, :], count)
        nodes.append((low + high) / 2 + (high - low) / 2 * torch.cos(angle))
        weights.append(sums @ lagrange)
    return torch.cat(nodes), torch.cat(weights, -1)


def _polynomials(z: Tensor, count: int) -> Iterator[Tensor]:
    """T_0(z), T_1(z), … by T_{j+1} = 2 z T_j − T_{j−1}."""
    before, now = z, torch.ones_like(z)  # T_{−1} = T_1
    for _ in range(count):
        yield now
        before, now = now, 2 * z * now - before


def _sums(z: Tensor, masks: Tensor, count: int) -> Tensor:
    return torch.stack([(masks @ t[..., None])[..., 0] for t in _polynomials(z, count)], -1)


class _Sums(torch.autograd.Function):
    """Σ_i m_i T_j(z_i), (*chains, kinds, count), without keeping the polynomials for the slope; a second derivative is
    plain autograd's."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, masks: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(z, masks)
        ctx.count = count
        return _sums(z, masks, count)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> Any:
        z, masks = ctx.saved_tensors
        if torch.is_grad_enabled():
            (again,) = torch.autograd.grad(_sums(z, masks, ctx.count), z, weight, create_graph=True)
            return again, None, None
        slope, before, now = torch.zeros_like(z), torch.zeros_like(z), torch.ones_like(z)  # U_{−1}, U_0
        for j in range(1, ctx.count):  # T_j' = j U_{j−1}
            slope += j * (weight[..., None, :, j] @ masks)[..., 0, :] * now
            before, now = now, 2 * z * now - before
        return slope, None, None
