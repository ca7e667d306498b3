"""Laplace approximation: a Gaussian at the MAP with the curvature found there (an approximation).

    q(z) = Normal(ẑ, H⁻¹),   ẑ = argmax log p(z | g),   H = −∇² log p(ẑ | g)

in the unconstrained coordinates z (MacKay 2003, eq. 27.3). H is exact, by one Hessian-vector product a coordinate,
many coordinates to a batch. Pareto k-hat of the importance weights p/q says how far q is from the posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.inference.map import peaks
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent


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


def hessian(density: Density, z: Tensor, chunk: int = 64, *, jacobian: bool = True) -> Tensor:
    """−∇² log p(z | g) at one point z (dim,), (dim, dim): rows are Hessian-vector products, `chunk` to a batch."""
    rows = []
    for directions in torch.eye(len(z), dtype=z.dtype, device=z.device).split(chunk):
        copies = z.expand(len(directions), -1).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(density(copies, jacobian=jacobian).sum(), copies, create_graph=True)
        rows.append(torch.autograd.grad((gradient * directions).sum(), copies)[0])
    h = -torch.cat(rows).double()
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
class Located:
    """Where inference begins.

    mode (dim,): the MAP of the model's own sites. starts (k, dim): ends of the search within 10 nats of the best, in
    the density of z. laplace: the Gaussian at the best of them.
    """

    mode: Tensor
    starts: Tensor
    laplace: Laplace


def locate(density: Density, *, starts: int, steps: int, progress: ProgressBar = silent) -> Located:
    """MAP from several starts, then the Laplace fit at the best of them."""
    mode, near = peaks(density, starts=starts, steps=steps, progress=progress)
    return Located(mode, near, fit(density, near[0], progress=progress))


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    chains: int = 4,
    draws: int = 500,
    starts: int = 8,
    steps: int = 400,
) -> Posterior:
    """Independent draws from the Gaussian at the MAP, labelled as the approximation they are.

    Args:
        chains: rows the draws are arranged in (they are independent anyway).
        draws: draws a chain.
        starts: prior draws the search for the mode starts from.
        steps: its Adam steps, before Newton's.
    """
    require_positive(chains=chains, draws=draws, starts=starts, steps=steps)
    pyro.set_rng_seed(seed)
    density = build(model, client, observed)
    found = locate(density, starts=starts, steps=steps, progress=progress)
    fitted = found.laplace
    w = torch.randn(chains * draws, density.dim, dtype=fitted.mode.dtype, device=fitted.mode.device)
    z = fitted.decode(w)
    with torch.no_grad():
        lp = torch.cat([density(part) for part in z.split(256)])
    log_q = -0.5 * (w.double().square().sum(1) + density.dim * math.log(2 * math.pi)) - fitted.log_det
    reasons = [f"the density is flat in {fitted.flat} directions"] if fitted.flat else []
    if client.kinks:
        reasons.append(f"the network has kinks ({', '.join(client.kinks)}): its posterior jumps, a Gaussian does not")
    return collect(
        density,
        z.unflatten(0, (chains, draws)),
        mode=found.mode,
        kind="approximation",
        stats={"lp": lp.unflatten(0, (chains, draws))},
        log_weights=lp - log_q,
        reasons=reasons,
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
