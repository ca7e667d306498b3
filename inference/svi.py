"""Stochastic variational inference: the closest member of a family of guides (an approximation).

    q* = argmax over q of E_q [log p(g | x, y) + log p(x, y) − log q]        (Hoffman et al. 2013, eq. 2)

Pyro's SVI on the flat posterior density, unknown labels summed out. `normal` is mean-field (too narrow wherever pixels
are correlated), `low_rank` and `full` are Gaussians, `flow` a neural spline flow. Each starts at the member of its
family that is closest to the Laplace fit; above 2048 latents, where the Hessian is too dear, at the diagonal of the
curvature alone. Pareto k-hat of p/q says how far the guide is from the posterior.
"""

from __future__ import annotations

from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    init_to_value,
)
from pyro.optim import ClippedAdam
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build, diagonal, whitening
from pplleak.density.decrement import Decrement
from pplleak.density.diagonal import Diagonal
from pplleak.density.whitening import Laplace
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.priors._splines import Flow, coupling_spline
from pplleak.progress import ProgressBar, silent

Family = Literal["normal", "low_rank", "full", "flow"]

DENSE = 2048  # latents up to which the Laplace fit, dim² numbers from dim³ operations, is worth its price

GAUSSIANS = {
    "normal": AutoDiagonalNormal,
    "low_rank": AutoLowRankMultivariateNormal,
    "full": AutoMultivariateNormal,
}


def coordinates(family: Family, fitted: Laplace) -> tuple[Laplace | Diagonal, Tensor | None]:
    """Where the guide's parameters live: z = mode + factor w, so that the guide's standard form is its start.

    full, flow   Normal(0, I) in w is the Laplace fit itself
    normal       widths H_ii^(-1/2): the mean-field Gaussian closest to the Laplace fit, in the ELBO's own sense
    low_rank     the closest of that family; the leading factors of w's covariance are the second value
    """
    if family in ("full", "flow"):
        return fitted, None
    inverse = torch.linalg.inv(fitted.factor.double())
    precision = inverse.mT @ inverse
    dtype = fitted.mode.dtype
    if family == "normal":
        return Diagonal(fitted.mode, precision.diagonal().rsqrt().to(dtype)), None
    widths, factors = low_rank(precision, round(len(precision) ** 0.5))
    return Diagonal(fitted.mode, widths.to(dtype)), factors.to(dtype)


def low_rank(precision: Tensor, rank: int, sweeps: int = 5) -> tuple[Tensor, Tensor]:
    """argmin over s, F of KL(Normal(0, S(I + F Fᵀ)S) ‖ Normal(0, precision⁻¹)), S = diag(s): factor analysis.

    F given s: V (λ⁻¹ − I)^½, the `rank` lowest eigenpairs of S precision S. s given F: the two precisions have one
    diagonal, s_i² precision_ii = 1 − Σ_k V_ik² (1 − λ_k). In turns; five are near enough to start from.

    Returns:
        s (dim,) and F (dim, rank).
    """
    s = precision.diagonal().rsqrt()
    for _ in range(sweeps):
        values, vectors = torch.linalg.eigh(s[:, None] * precision * s)
        soft, v = values[:rank].clamp(max=1), vectors[:, :rank]
        factor = v * (1 / soft - 1).sqrt()
        s = ((1 - v.square() @ (1 - soft)) / precision.diagonal()).sqrt()
    return s, factor


def begin(
    family: Family, density: Density, starts: int, steps: int, progress: ProgressBar = silent
) -> tuple[Tensor, Laplace | Diagonal, Tensor | None, Decrement]:
    """The MAP and `coordinates`; above DENSE latents the diagonal ones; low-rank factors then start at random.
    Last, what is left to climb from the MAP.

    Raises:
        BadInput: a full guide above DENSE latents.
    """
    if density.dim <= DENSE:
        found = whitening.locate(density, starts=starts, steps=steps, progress=progress)
        return found.mode, *coordinates(family, found.base), found.left
    if family == "full":
        raise BadInput(
            f"a full guide of {density.dim} latents has {density.dim**2} numbers: say --inference.guide low_rank, "
            "normal or flow"
        )
    near = diagonal.locate(density, starts=starts, steps=steps, progress=progress)
    return near.mode, near.base, None, near.left


def program(density: Density, base: Laplace | Diagonal) -> None:
    """The flat posterior as a Pyro program: one real vector w and one factor."""
    zero = torch.zeros(density.dim, dtype=base.mode.dtype, device=base.mode.device)
    w = pyro.sample("w", dist.Normal(zero, 1.0).to_event(1).mask(False))
    with poutine.block():  # the density traces the model: its sites are not this program's
        value = density(base.decode(w.reshape(-1, density.dim)))
    pyro.factor("posterior", value.reshape(w.shape[:-1]))


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    guide: Family = "full",
    iterations: int = 300,
    particles: int = 16,
    lr: float = 0.01,
    chains: int = 4,
    draws: int = 500,
    starts: int = 8,
    steps: int = 400,
) -> Posterior:
    """Independent draws from the fitted guide, labelled as the approximation they are.

    Args:
        guide: normal (mean-field), low_rank, full, or flow.
        iterations: optimisation steps of the ELBO. Ctrl-C keeps the guide fitted so far.
        particles: draws of the guide a step.
        lr: Adam's first learning rate; it decays a hundredfold.
        chains: rows the draws are arranged in (they are independent anyway).
        draws: draws a chain.
        starts: prior draws the search for the MAP starts from.
        steps: its Adam steps.
    """
    require_positive(
        iterations=iterations, particles=particles, lr=lr, chains=chains, draws=draws, starts=starts, steps=steps
    )
    pyro.set_rng_seed(seed)
    density = build(model, client, observed)
    mode, base, factors, left = begin(guide, density, starts, steps, progress)
    reasons, losses = [*left.doubts], []
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        pyro.clear_param_store()

        def flat() -> None:
            program(density, base)

        at_zero = init_to_value(values={"w": torch.zeros_like(base.mode)})
        if guide == "flow":
            flow = coupling_spline(density.dim, dtype=base.mode.dtype).to(base.mode.device)

            def fitted() -> None:
                pyro.module("flow", flow)
                pyro.sample("w", posterior())

            def posterior() -> Flow:
                return Flow(flow())

        else:
            auto = GAUSSIANS[guide](flat, init_loc_fn=at_zero, init_scale=1.0)
            if factors is not None:
                auto()  # makes its parameters
                auto.scale, auto.cov_factor.data = torch.ones_like(base.mode), factors
            fitted, posterior = auto, auto.get_posterior
        # nesting 1 leaves dimension -1 to the density's own plate of chains
        elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
        optimiser = ClippedAdam({"lr": lr, "lrd": 0.01 ** (1 / iterations), "clip_norm": 100.0})
        svi = SVI(flat, fitted, optimiser, elbo)
        try:
            for _ in progress(f"SVI ({guide})", iterations):
                losses.append(-svi.step())
        except KeyboardInterrupt:
            reasons.append(f"interrupted after {len(losses)} of {iterations} steps: the guide so far is kept")
            if not losses:
                raise
        with torch.no_grad():
            q = posterior()
            w = q.sample((chains * draws,))
            log_q = q.log_prob(w).double() - base.log_det
    z = base.decode(w)
    with torch.no_grad():
        lp = torch.cat([density(part) for part in z.split(256)])
    if client.kinks:
        reasons.append(f"the network has kinks ({', '.join(client.kinks)}): its posterior jumps, the guide does not")
    return collect(
        density,
        z.unflatten(0, (chains, draws)),
        mode=mode,
        kind="approximation",
        stats={"lp": lp.unflatten(0, (chains, draws))},
        curves={"elbo": torch.tensor(losses)},
        log_weights=lp - log_q,
        reasons=reasons,
        attrs={"guide": guide, "nats_left": left.number},
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
