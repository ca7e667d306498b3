"""Stochastic variational inference: the closest member of a family of guides (an approximation).

    q* = argmax over q of E_q [log p(g | x, y) + log p(x, y) − log q]        (Hoffman et al. 2013, eq. 2)

Pyro's SVI on the flat posterior density, unknown labels summed out. Guides start at the Laplace fit. `normal` is
mean-field (too narrow wherever pixels are correlated), `low_rank` and `full` are Gaussians, `flow` a neural spline
flow. Pareto k-hat of p/q says how far the guide is from the posterior.
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

from pplleak import density as densities
from pplleak.clients import Client
from pplleak.density import Density, Model
from pplleak.errors import require_positive
from pplleak.flows import Flow, coupling_spline
from pplleak.inference.laplace import Laplace, locate
from pplleak.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent

Family = Literal["normal", "low_rank", "full", "flow"]

GAUSSIANS = {
    "normal": AutoDiagonalNormal,
    "low_rank": AutoLowRankMultivariateNormal,
    "full": AutoMultivariateNormal,
}


def coordinates(family: Family, laplace: Laplace) -> Laplace:
    """Where the guide's parameters live: z = mode + factor w, with q(w) = Normal(0, I) the start.

    Mean-field and low-rank guides are closed under rescaling but not under rotation, so they get the diagonal of the
    curvature, diag(H)^(-1/2), which is also the best mean-field fit to a Gaussian.
    """
    if family in ("full", "flow"):
        return laplace
    inverse = torch.linalg.inv(laplace.factor.double())
    width = (inverse.mT @ inverse).diagonal().rsqrt()
    factor = width.diag().to(laplace.factor.dtype)
    return Laplace(laplace.mode, factor, float(width.log().sum()), laplace.flat)


def program(density: Density, base: Laplace) -> None:
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
    iterations: int = 1000,
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
    density = densities.build(model, client, observed)
    found = locate(density, starts=starts, steps=steps, progress=progress)
    laplace = found.laplace
    base, reasons, losses = coordinates(guide, laplace), [], []
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        pyro.clear_param_store()

        def flat() -> None:
            program(density, base)

        at_zero = init_to_value(values={"w": torch.zeros_like(laplace.mode)})
        if guide == "flow":
            flow = coupling_spline(density.dim, dtype=laplace.mode.dtype).to(laplace.mode.device)

            def fitted() -> None:
                pyro.module("flow", flow)
                pyro.sample("w", posterior())

            def posterior() -> Flow:
                return Flow(flow())

        else:
            auto = GAUSSIANS[guide](flat, init_loc_fn=at_zero, init_scale=1.0)
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
        mode=found.mode,
        kind="approximation",
        stats={"lp": lp.unflatten(0, (chains, draws))},
        curves={"elbo": torch.tensor(losses)},
        log_weights=lp - log_q,
        reasons=reasons,
        attrs={"guide": guide},
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
