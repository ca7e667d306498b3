"""Sums over many entries of smooth functions of one number each, by few nodes that stand for all of them.

    Σ_i m_i f(s_i) = Σ_k w_k f(x_k),   w_k = Σ_i m_i ℓ_k(s_i)

with ℓ_k the Lagrange polynomials of Chebyshev's nodes x_k: exact for polynomials f, and for an analytic f as near as
its interpolation (Trefethen 2013, theorem 8.2: an error of ρ^−K, ρ that of the largest ellipse without singularity).
The weights, which may be negative, hold all that depends on the entries, slopes included. ℓ_k is expanded in
Chebyshev's polynomials T_j, whose sums over the entries are made by their recurrence.
"""

from __future__ import annotations

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
    piece, z = _placed(s, edges)
    sums: Tensor = _Sums.apply(z, masks, piece, len(edges) - 1, count)
    nodes, lagrange = _lagrange(edges, count, s)
    return nodes, (sums @ lagrange).flatten(-2)


def coarser(nodes: Tensor, weights: Tensor, edges: list[float], count: int) -> tuple[Tensor, Tensor]:
    """What `gather` of as many nodes a piece gives for fewer edges, from what it gave for more of them: exactly."""
    piece, z = _placed(nodes, edges)
    fewer, lagrange = _lagrange(edges, count, nodes)
    values = torch.stack(list(_polynomials(z, count)), -1) @ lagrange  # ℓ_k of its own piece at each node
    own = torch.nn.functional.one_hot(piece, len(edges) - 1).to(values)
    return fewer, weights @ (own[..., None] * values[:, None]).flatten(1)


def _placed(s: Tensor, edges: list[float]) -> tuple[Tensor, Tensor]:
    """In which piece each number lies, and where in it, from −1 to 1."""
    cuts = torch.tensor(edges, dtype=s.dtype, device=s.device)
    piece = torch.bucketize(s.detach(), cuts[1:-1], right=True)
    low, high = cuts[piece], cuts[piece + 1]
    return piece, ((2 * s - low - high) / (high - low)).clamp(-1, 1)


def _lagrange(edges: list[float], count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Chebyshev's nodes of all pieces (pieces · count,), and ℓ_k by T_j, (j, k), of each of them."""
    cuts, j = torch.tensor(edges, dtype=like.dtype, device=like.device), torch.arange(count).to(like)
    angle, middle, half = math.pi * (j + 0.5) / count, (cuts[1:] + cuts[:-1]) / 2, (cuts[1:] - cuts[:-1]) / 2
    nodes = (middle[:, None] + half[:, None] * torch.cos(angle)).flatten()
    return nodes, torch.cos(j[:, None] * angle) * torch.where(j > 0, 2.0, 1.0)[:, None] / count


def _polynomials(z: Tensor, count: int) -> Iterator[Tensor]:
    """T_0(z), T_1(z), … by T_{j+1} = 2 z T_j − T_{j−1}."""
    before, now = z, torch.ones_like(z)  # T_{−1} = T_1
    for _ in range(count):
        yield now
        before, now = now, 2 * z * now - before


def _sums(z: Tensor, masks: Tensor, piece: Tensor, pieces: int, count: int) -> Tensor:
    where, none = piece[..., None, :].expand(masks.shape), masks.new_zeros(*masks.shape[:-1], pieces)
    return torch.stack([none.scatter_add(-1, where, masks * t[..., None, :]) for t in _polynomials(z, count)], -1)


class _Sums(torch.autograd.Function):
    """Σ_i m_i T_j(z_i) of each piece, (*chains, kinds, pieces, count), without keeping the polynomials for the slope; a
    second derivative is plain autograd's."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, masks: Tensor, piece: Tensor, pieces: int, count: int) -> Tensor:
        ctx.save_for_backward(z, masks, piece)
        ctx.sizes = pieces, count
        return _sums(z, masks, piece, pieces, count)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> Any:
        z, masks, piece = ctx.saved_tensors
        if torch.is_grad_enabled():
            (again,) = torch.autograd.grad(_sums(z, masks, piece, *ctx.sizes), z, weight, create_graph=True)
            return again, None, None, None, None
        where = piece[..., None, :].expand(masks.shape)
        slope, before, now = torch.zeros_like(z), torch.zeros_like(z), torch.ones_like(z)  # U_{−1}, U_0
        for j in range(1, ctx.sizes[1]):  # T_j' = j U_{j−1}
            slope += j * (weight[..., j].gather(-1, where) * masks).sum(-2) * now
            before, now = now, 2 * z * now - before
        return slope, None, None, None, None
