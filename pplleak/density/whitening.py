"""Coordinates in which the posterior is about round: a Gaussian at the MAP with the curvature found there.

    q(z) = Normal(ẑ, H⁻¹),   ẑ = argmax log p(z | g),   H = −∇² log p(ẑ | g);     z = ẑ + L w,   L Lᵀ = H⁻¹

(MacKay 2003, eq. 27.3.) H is exact, by one Hessian-vector product a coordinate, many coordinates to a batch.
`pplleak.density.diagonal` does the same without a matrix, where dim² numbers are too many.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from pplleak.density import Density, room
from pplleak.density.decrement import Decrement
from pplleak.density.hamiltonian import Potential
from pplleak.density.recording.tape import Recorded
from pplleak.density.search import peaks
from pplleak.errors import BadInput
from pplleak.progress import ProgressBar, silent

WIDEST = 4096  # latents up to which a Hessian is formed


class Coordinates(Protocol):
    """z = mode + L w for an L of some form."""

    @property
    def mode(self) -> Tensor: ...
    def decode(self, w: Tensor) -> Tensor: ...
    def encode(self, z: Tensor) -> Tensor: ...
    def widened(self, sd: Tensor) -> Self: ...
    def under(self, log_density: Recorded) -> Potential: ...


@dataclass(frozen=True, eq=False)
class Laplace:
    """Normal(mode, factor factorᵀ): mode (dim,), factor (dim, dim), log_det of the factor.

    flat: directions in which the density does not curve down, where the width is a guess.
    """

    mode: Tensor
    factor: Tensor
    log_det: float
    flat: int

    def decode(self, w: Tensor) -> Tensor:
        """Whitened w (chains, dim) -> z = mode + factor w."""
        return self.mode + w @ self.factor.mT

    def encode(self, z: Tensor) -> Tensor:
        """z (chains, dim) -> w, the inverse of `decode`."""
        return torch.linalg.solve(self.factor.double(), (z - self.mode).double().mT).mT.to(z.dtype)

    def widened(self, sd: Tensor) -> Self:
        """The same with each coordinate sd (dim,) times as wide."""
        return replace(self, factor=self.factor * sd, log_det=self.log_det + float(sd.log().sum()))

    def under(self, log_density: Recorded) -> Potential:
        """log p(z(w) | g) and its gradient in w."""
        return log_density.under(self.mode, self.factor)


def products(density: Density, z: Tensor, directions: Tensor, *, jacobian: bool = True) -> Tensor:
    """−∇² log p(z | g) v at one point z (dim,) for every row v of `directions` (k, dim), in one batch; float64."""
    copies = z.expand(len(directions), -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(density(copies, jacobian=jacobian).sum(), copies, create_graph=True)
    return -torch.autograd.grad((gradient * directions).sum(), copies)[0].double()


def hessian(density: Density, z: Tensor, chunk: int = 64, *, jacobian: bool = True) -> Tensor:
    """−∇² log p(z | g) at one point z (dim,), (dim, dim): rows are Hessian-vector products, `chunk` to a batch,
    or as many as fit into memory."""
    unit = torch.eye(len(z), dtype=z.dtype, device=z.device)
    chunk = max(1, room.at_once(density, 3 * chunk) // 3)  # a second derivative keeps about three times as much
    h = torch.cat([products(density, z, rows, jacobian=jacobian) for rows in unit.split(chunk)])
    return (h + h.mT) / 2


def fit(density: Density, z: Tensor, *, newton: int = 20, progress: ProgressBar = silent) -> Laplace:
    """Climb from z (dim,) to the mode by damped Newton steps, and take the curvature there."""
    z, curvature = climb_by_newton(density, z, newton, progress=progress)
    values, vectors = curvature or torch.linalg.eigh(hessian(density, z))
    scale = _widths(values)
    return Laplace(z, (vectors * scale).to(z.dtype), float(scale.log().sum()), int((values <= 0).sum()))


def climb_by_newton(
    density: Density, z: Tensor, steps: int, *, jacobian: bool = True, progress: ProgressBar = silent
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Damped Newton steps from z (dim,): where they end and, where they came to rest, the curvature there: eigenvalues
    and eigenvectors of −∇² log p.

    Each step follows |H|⁻¹∇ (saddles are left, not sought), at the best of eight lengths tried in one batch; it ends
    when a step gains less than 1e-3 nats. jacobian: as for `Density.__call__`.
    """
    lengths = torch.tensor([2.0, 1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.0], dtype=z.dtype, device=z.device)
    for _ in progress("curvature", steps):
        values, vectors = torch.linalg.eigh(hessian(density, z, jacobian=jacobian))
        _, gradient = density.value_and_grad(z[None], jacobian=jacobian)
        step = (vectors * _widths(values) ** 2) @ (vectors.mT @ gradient[0].double())
        tries = z + lengths[:, None] * step.to(z.dtype)
        with torch.no_grad():
            tried = torch.nan_to_num(density(tries, jacobian=jacobian), nan=-math.inf)
        best = int(tried.argmax())
        if float(tried[best] - tried[-1]) < 1e-3:
            return z, (values, vectors)
        z = tries[best]
    return z, None


def _widths(eigenvalues: Tensor) -> Tensor:
    """Standard deviations along the eigenvectors; where the density does not curve down, as wide as it gets."""
    positive = eigenvalues[eigenvalues > 0]
    floor = positive.min() if len(positive) else torch.ones((), dtype=eigenvalues.dtype, device=eigenvalues.device)
    return eigenvalues.abs().clamp(min=float(floor)).rsqrt()


@dataclass(frozen=True, eq=False)
class Located[Base]:
    """Where inference begins.

    mode (dim,): the MAP of the model's own sites. starts (k, dim): ends of the search within 10 nats of the best, in
    the density of z. base: the coordinates at the best of them, those of its Gaussian (`Laplace`) or of widths alone
    (`diagonal.Diagonal`). left: what is left to climb from the mode.
    """

    mode: Tensor
    starts: Tensor
    base: Base
    left: Decrement


def locate(
    density: Density, *, starts: int, steps: int, begin: Tensor | None = None, progress: ProgressBar = silent
) -> Located[Laplace]:
    """MAP from several starts, and from `begin` (k, dim) where it is given; then the Laplace fit at the best of them.

    Raises:
        BadInput: more than `WIDEST` latents.
    """
    if density.dim > WIDEST:
        raise BadInput(f"this inference takes the curvature in all of {density.dim:,} latents, a matrix of their "
                       "square: take map, langevin, svi or hmc, which need none")  # fmt: skip
    fitted = functools.partial(fit, progress=progress)
    return located(fitted, density, starts=starts, steps=steps, begin=begin, progress=progress)


def located[Base](
    fitted: Callable[[Density, Tensor], Base],
    density: Density,
    *,
    starts: int,
    steps: int,
    begin: Tensor | None = None,
    progress: ProgressBar,
) -> Located[Base]:
    """MAP from several starts and `begin`, then the coordinates that are fitted at the best of them."""
    mode, near, left = peaks(density, starts=starts, steps=steps, begin=begin, progress=progress)
    return Located(mode, near, fitted(density, near[0]), left)


def cheapest(laplace: Laplace, spread: float = 5.0) -> Laplace:
    """The diagonal metric diag(H)^−½ where it is about as good as the dense one, else the fit itself.

    In its coordinates the curvature then has eigenvalues within a factor of `spread`, and the step size, which the
    largest decides, costs little. A diagonal metric leaves products that are sparse in z sparse
    (`pplleak.density.recording.tape`).
    """
    inverse = torch.linalg.inv(laplace.factor.double())
    precision = inverse.mT @ inverse
    sd = precision.diagonal().rsqrt()
    curvature = torch.linalg.eigvalsh(sd[:, None] * precision * sd)
    if bool(curvature[-1] > spread * curvature[0]):
        return laplace
    return replace(laplace, factor=sd.diag().to(laplace.factor.dtype), log_det=float(sd.log().sum()))


def starting_points[Base: Coordinates](found: Located[Base], chains: int, inflate: float = 1.2) -> Tensor:
    """w (chains, dim): inflated Laplace draws, dealt out to all ends of the search within reach of the best.

    A second mode that holds mass is entered this way, and R-hat sees it; a local optimum far below is not.
    """
    near = torch.cat([found.base.mode[None], found.starts[1:]])
    offsets = found.base.encode(near)
    picks = torch.arange(chains, device=near.device) % len(near)
    return offsets[picks] + inflate * torch.randn(chains, near.shape[1], dtype=near.dtype, device=near.device)


def whitened(log_density: Recorded, base: Coordinates) -> Potential:
    """U(w) = −log p(ẑ + L w | g) and its gradient, for `density.recorded` or another log-density and its gradient."""
    inner = base.under(log_density)

    def potential(w: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = inner(w)
        return -value, -gradient

    return potential
