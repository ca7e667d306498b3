"""Laplace approximation: a Gaussian at the MAP with the curvature found there (an approximation).

    q(z) = Normal(ẑ, H⁻¹),   ẑ = argmax log p(z | g),   H = −∇² log p(ẑ | g)

in the unconstrained coordinates z (MacKay 2003, eq. 27.3). H is exact, by one Hessian-vector product a coordinate,
many coordinates to a batch. Pareto k-hat of the importance weights p/q says how far q is from the posterior.
"""

from __future__ import annotations

import math

import pyro
import torch

from pplleak.client import Client
from pplleak.density import Model, build
from pplleak.density.whitening import locate
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent


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
    fitted = found.base
    w = torch.randn(chains * draws, density.dim, dtype=fitted.mode.dtype, device=fitted.mode.device)
    z = fitted.decode(w)
    with torch.no_grad():
        lp = torch.cat([density(part) for part in z.split(256)])
    log_q = -0.5 * (w.double().square().sum(1) + density.dim * math.log(2 * math.pi)) - fitted.log_det
    reasons = [*found.left.doubts]
    if fitted.flat:
        reasons.append(f"the density is flat in {fitted.flat} directions")
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
        attrs={"nats_left": found.left.number},
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
