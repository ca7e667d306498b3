"""Coordinates without a matrix: one width a latent, for posteriors too large for a dense Hessian.

    z = mode + widths ∘ w,   widths_i = H_ii^(-1/2),   H = −∇² log p(mode | g)

diag(H) is estimated from Hessian-vector products with random signs v: E[v ∘ H v] = diag(H) (Bekas, Kokiopoulou & Saad
2007). These are the conditional widths: draws Normal(0, I) of w lie as high in a Gaussian posterior as its own do.
"""

from __future__ import annotations

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

TIMID = 0.1  # of the median curvature: what an estimate at or below it is raised to


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Normal(mode, diag(widths)²), both (dim,)."""

    mode: Tensor
    widths: Tensor

    @property
    def log_det(self) -> float:
        return float(self.widths.double().log().sum())

    def decode(self, w: Tensor) -> Tensor:
        """Whitened w (chains, dim) -> z."""
        return self.mode + self.widths * w

    def encode(self, z: Tensor) -> Tensor:
        """z (chains, dim) -> w, the inverse of `decode`."""
        return (z - self.mode) / self.widths

    def widened(self, sd: Tensor) -> Self:
        """The same with each coordinate sd (dim,) times as wide."""
        return replace(self, widths=self.widths * sd)

    def under(self, log_density: Recorded) -> Potential:
        """log p(z(w) | g) and its gradient in w."""
        around = log_density.under(self.mode, None)

        def inner(w: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = around(self.widths * w)
            return value, gradient * self.widths

        return inner


def curvature(density: Density, z: Tensor, probes: int) -> Tensor:
    """diag(−∇² log p(z | g)) at one point z (dim,), from `probes` Hessian-vector products in one batch; (dim,)."""
    signs = 2.0 * torch.randint(2, (probes, len(z)), device=z.device).to(z.dtype) - 1
    return (signs * products(density, z, signs)).mean(0)


def fit(density: Density, z: Tensor, probes: int = 64) -> Diagonal:
    """The widths at the mode z (dim,); where the estimate says too little, nearly as wide as the median."""
    h = curvature(density, z, probes)
    typical = h.clamp(min=0).median()
    floor = TIMID * typical if float(typical) > 0 else torch.ones_like(typical)
    return Diagonal(z, torch.maximum(h, floor).rsqrt().to(z.dtype))


def locate(density: Density, *, starts: int, steps: int, progress: ProgressBar = silent) -> Located[Diagonal]:
    """MAP from several starts and the widths there: `whitening.locate` at the price of a few gradients."""
    return located(fit, density, starts=starts, steps=steps, progress=progress)


def nearest(z: Tensor, gradient: Tensor) -> Tensor:
    """(Var z / Var ∇ log p)^(1/4), (dim,), from draws z (N, dim) and their gradients: the diagonal Gaussian nearest to
    the posterior in Fisher divergence. It lies between the marginal and the conditional widths."""
    widths = (z.double().var(0) / gradient.double().var(0)) ** 0.25
    return torch.nan_to_num(widths, nan=1.0, posinf=1.0).clamp(min=math.ulp(0.0)).to(z.dtype)
