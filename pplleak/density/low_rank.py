"""Coordinates of low rank plus a multiple of the identity, for posteriors too large for a dense Hessian.

    z = mode + L (s ∘ w),   L = c I + V diag(λ^(-1/2) − c) Vᵀ,   H = −∇² log p(mode | g) ≈ V diag(λ) Vᵀ + c⁻² (I − V Vᵀ)

In coordinates in which the prior is Normal(0, I), as those of `pplleak.priors` are, H is the identity and what the
gradient says, which is large in few directions: V (dim, k) holds them. They are Ritz vectors of a block Lanczos
iteration on Hessian-vector products, re-orthogonalised in full (Golub & Van Loan 2013, section 10.3.6); c⁻² is the mean
of the other eigenvalues, by the trace of H over the first, random block. s (dim,) are widths that the chains correct.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pplleak.density import Density
from pplleak.density.hamiltonian import Potential
from pplleak.density.recording.tape import Recorded
from pplleak.density.whitening import Located, located, products
from pplleak.progress import ProgressBar, silent

BLOCK = 32  # Hessian-vector products at a time


@dataclass(frozen=True, eq=False)
class LowRank:
    """Normal(mode, (L diag(s)) (L diag(s))ᵀ): directions V (dim, k), along λ^(-1/2) (k,), rest c, widths s (dim,)."""

    mode: Tensor
    directions: Tensor
    along: Tensor
    rest: float
    widths: Tensor

    @property
    def log_det(self) -> float:
        others = (len(self.mode) - len(self.along)) * math.log(self.rest)
        return others + float(self.along.double().log().sum() + self.widths.double().log().sum())

    def _bent(self, w: Tensor, along: Tensor, rest: float) -> Tensor:
        return rest * w + ((w @ self.directions) * (along - rest)) @ self.directions.mT

    def decode(self, w: Tensor) -> Tensor:
        """Whitened w (…, dim) -> z."""
        return self.mode + self._bent(self.widths * w, self.along, self.rest)

    def encode(self, z: Tensor) -> Tensor:
        """z (…, dim) -> w, the inverse of `decode`."""
        return self._bent(z - self.mode, 1 / self.along, 1 / self.rest) / self.widths

    def widened(self, sd: Tensor) -> Self:
        """The same with each coordinate sd (dim,) times as wide."""
        return replace(self, widths=self.widths * sd)

    def under(self, log_density: Recorded) -> Potential:
        """log p(z(w) | g) and its gradient in w."""

        def inner(w: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = log_density(self.decode(w))
            return value, self.widths * self._bent(gradient, self.along, self.rest)

        return inner


def fit(density: Density, z: Tensor, rank: int = 128, *, progress: ProgressBar = silent) -> LowRank:
    """The curvature at the mode z (dim,), along its `rank` steepest directions and in the mean of all others."""
    dim = len(z)
    blocks = min(max(2, 2 * -(-rank // BLOCK)), dim // BLOCK or 1)
    next_ = torch.randn(dim, min(BLOCK, dim), generator=torch.Generator().manual_seed(0)).to(z)
    basis, bent = z.new_empty(dim, 0), z.new_empty(dim, 0)
    trace = 0.0
    for k in progress("curvature", blocks):
        for _ in range(2):  # once more, against rounding
            next_ = next_ - basis @ (basis.mT @ next_)
            next_ = torch.linalg.qr(next_)[0]
        image = products(density, z, next_.mT).mT.to(z)
        if k == 0:
            trace = float((next_ * image).double().sum()) / next_.shape[1] * dim
        basis, bent, next_ = torch.cat([basis, next_], 1), torch.cat([bent, image], 1), image
    projected = (basis.mT @ bent).double()
    values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
    kept = (values > 0) & (torch.arange(len(values), device=values.device) >= len(values) - rank)
    typical = (trace - float(values[kept].sum())) / max(1, dim - int(kept.sum()))
    least = float(values[kept].min()) if bool(kept.any()) else 1.0
    rest = min(max(typical, 1e-3 * least), least)  # an estimate: never above what was seen along the last direction
    directions = basis @ vectors[:, kept].to(z)
    return LowRank(z, directions, values[kept].rsqrt().to(z), rest**-0.5, torch.ones_like(z))


def locate(
    density: Density, *, starts: int, steps: int, begin: Tensor | None = None, progress: ProgressBar = silent
) -> Located[LowRank]:
    """MAP from several starts and the curvature there: `whitening.locate` without a matrix of dim²."""
    fitted = functools.partial(fit, progress=progress)
    return located(fitted, density, starts=starts, steps=steps, begin=begin, progress=progress)
