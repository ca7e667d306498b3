"""Coordinates without a matrix: one width a latent, for posteriors too large for a dense Hessian.

    z = mode + widths ∘ w,   widths_i = H_ii^(-1/2),   H = −∇² log p(mode | g)

diag(H) is estimated from Hessian-vector products with random signs v: E[v ∘ H v] = diag(H) (Bekas, Kokiopoulou & Saad
2007). These are the conditional widths: draws Normal(0, I) of w lie as high in a Gaussian posterior as its own do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pplleak.density import Density
from pplleak.density.search import peaks
from pplleak.density.whitening import Located
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


def curvature(density: Density, z: Tensor, probes: int) -> Tensor:
    """diag(−∇² log p(z | g)) at one point z (dim,), from `probes` Hessian-vector products in one batch; (dim,)."""
    copies = z.expand(probes, -1).clone().requires_grad_()
    signs = 2.0 * torch.randint(2, copies.shape, device=z.device).to(z.dtype) - 1
    (gradient,) = torch.autograd.grad(density(copies).sum(), copies, create_graph=True)
    (product,) = torch.autograd.grad((gradient * signs).sum(), copies)
    return -(signs * product).double().mean(0)


def fit(density: Density, z: Tensor, probes: int = 64) -> Diagonal:
    """The widths at the mode z (dim,); where the estimate says too little, nearly as wide as the median."""
    h = curvature(density, z, probes)
    typical = h.clamp(min=0).median()
    floor = TIMID * typical if float(typical) > 0 else torch.ones_like(typical)
    return Diagonal(z, torch.maximum(h, floor).rsqrt().to(z.dtype))


def locate(density: Density, *, starts: int, steps: int, progress: ProgressBar = silent) -> Located[Diagonal]:
    """MAP from several starts and the widths there: `whitening.locate` at the price of a few gradients."""
    mode, near, left = peaks(density, starts=starts, steps=steps, progress=progress)
    return Located(mode, near, fit(density, near[0]), left)


def nearest(z: Tensor, gradient: Tensor) -> Tensor:
    """(Var z / Var ∇ log p)^(1/4), (dim,), from draws z (N, dim) and their gradients: the diagonal Gaussian nearest to
    the posterior in Fisher divergence. It lies between the marginal and the conditional widths."""
    widths = (z.double().var(0) / gradient.double().var(0)) ** 0.25
    return torch.nan_to_num(widths, nan=1.0, posinf=1.0).clamp(min=math.ulp(0.0)).to(z.dtype)
