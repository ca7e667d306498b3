"""Maps near the identity, without their matrices: their inverse, and log |det| of their Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

Map = Callable[[Tensor], Tensor]  # rows (N, d) -> (N, d), each by itself

EXACT = 128  # coordinates up to which log_det takes the matrix unless it is told otherwise
LANCZOS = 10  # steps of an estimate of log |det|
MEMORY = 6  # residuals that the search for the inverse looks back on
TRIES = 200


def inverse(step: Map, target: Tensor) -> Tensor:
    """u with step(u) = target, (N, d), to about the precision of the numbers; NaN in rows where none was found.

    Anderson acceleration (Walker & Ni 2011) of u ← u + target − step(u): a secant method, which finds the inverse also
    where that iteration diverges.
    """
    tolerance = 30 * torch.finfo(target.dtype).eps
    size = target.abs().amax(-1).clamp(min=1)
    u, done = target, target.new_full(target.shape, math.nan)
    left = torch.arange(len(target), device=target.device)
    us: list[Tensor] = []
    rs: list[Tensor] = []
    for _ in range(TRIES):
        r = target[left] - step(u)
        near = r.abs().amax(-1) <= tolerance * size[left]
        done[left[near]] = u[near]
        far = ~near & r.isfinite().all(-1)
        if not bool(far.any()):
            break
        left, u, r = left[far], u[far], r[far]
        us, rs = [t[far] for t in us[-MEMORY:]] + [u], [t[far] for t in rs[-MEMORY:]] + [r]
        u = u + r if len(us) == 1 else _mixed(us, rs)
    return done


def _mixed(us: list[Tensor], rs: list[Tensor]) -> Tensor:
    """u + r − (ΔU + ΔR) γ with γ the least squares solution of ΔR γ = r."""
    du = torch.stack([us[-1] - t for t in us[:-1]], -1).double()
    dr = torch.stack([rs[-1] - t for t in rs[:-1]], -1).double()
    r = rs[-1].double()
    gram = dr.mT @ dr
    gram = gram + 1e-12 * gram.diagonal(0, -2, -1).sum(-1)[:, None, None] * torch.eye(gram.shape[-1]).to(gram)
    gamma = torch.linalg.solve_ex(gram, dr.mT @ r[..., None])[0]
    return (us[-1].double() + r - ((du + dr) @ gamma)[..., 0]).to(us[-1].dtype)


def log_det(step: Map, u: Tensor, exact: bool | None = None) -> Tensor:
    """log |det ∂step/∂u| at each row of u (N, d); (N,), float64.

    Args:
        exact: by the Jacobian itself, d directional derivatives; else an estimate by `lanczos`. None: exact up to EXACT
            coordinates.
    """
    if exact or (exact is None and u.shape[-1] <= EXACT):
        return jacobian(step, u).double().slogdet()[1]
    return lanczos(step, u)


def jacobian(step: Map, u: Tensor) -> Tensor:
    """∂step_i/∂u_j, (N, d, d), by one directional derivative for every coordinate."""

    def along(direction: Tensor) -> Tensor:
        return jvp(step, (u,), (direction.expand_as(u),))[1]

    basis = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    return vmap(along, chunk_size=64)(basis).permute(1, 2, 0)


def lanczos(step: Map, u: Tensor, steps: int = LANCZOS) -> Tensor:
    """An estimate of log |det J| = ½ tr log JᵀJ for the Jacobian J at each row of u (N, d); (N,), float64.

        d Σ_j τ_j log s_j,   s_j the singular values of B, τ_j the squared first entries of its right singular vectors

    and B the bidiagonal matrix of Golub & Kahan (1965) from a random direction of ±1: stochastic Lanczos quadrature
    (Ubaru, Chen & Saad 2017), of one direction. Its mean over directions is the determinant's logarithm but for the
    quadrature's error, which falls exponentially with the steps and is small where J is near the identity.
    """
    right = torch.randint(2, u.shape, device=u.device).to(u) * 2 - 1
    right = right / math.sqrt(u.shape[-1])
    back = vjp(step, u)[1]
    rights, lefts = [right], list[Tensor]()
    alphas, betas = list[Tensor](), list[Tensor]()
    left = jvp(step, (u,), (right,))[1]
    for k in range(steps):
        left, alpha = _against(left, lefts)
        lefts.append(left)
        alphas.append(alpha)
        if k + 1 == steps:
            break
        right, beta = _against(back(left)[0] - alpha[:, None] * rights[-1], rights)
        rights.append(right)
        betas.append(beta)
        left = jvp(step, (u,), (right,))[1] - beta[:, None] * left
    b = torch.diag_embed(torch.stack(alphas, -1).double())
    if betas:
        b = b + torch.diag_embed(torch.stack(betas, -1).double(), 1)
    finite = b.isfinite().all(-1).all(-1)
    _, values, vh = torch.linalg.svd(torch.where(finite[:, None, None], b, torch.eye(steps).to(b)))
    logs = (vh[..., 0].square() * values.clamp(min=1e-300).log()).sum(-1)
    return torch.where(finite, u.shape[-1] * logs, math.nan)


def _against(v: Tensor, others: list[Tensor]) -> tuple[Tensor, Tensor]:
    """v without what it has of others, (N, d), scaled to unit length, and that length (N,)."""
    for other in others:
        v = v - (v * other).sum(-1, keepdim=True) * other
    length = v.norm(dim=-1)
    return v / length.clamp(min=1e-30)[:, None], length
