"""Metropolis-adjusted Langevin: exact draws from a smooth posterior, one gradient a draw.

In coordinates w whitened by the Laplace fit, z = mode + L w (Roberts & Tweedie 1996):

    w' ~ Normal(m(w), ε² I),   m(w) = w + ε²/2 ∇ log p(w | g)
    accept with probability min(1, p(w') Normal(w; m(w'), ε² I) / p(w) Normal(w'; m(w), ε² I))
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Model, build
from pplleak.density.whitening import locate
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
    chains: int = 64,
    draws: int = 500,
    warmup: int = 200,
    thin: int = 5,
    step_size: float = 0.6,
) -> Posterior:
    """Draws from p(x, y | g).

    Args:
        chains: Markov chains, all advanced in one batch.
        draws: draws a chain, after warm-up.
        warmup: steps that are thrown away.
        thin: steps between two draws that are kept.
        step_size: ε, in posterior standard deviations.
    """
    pyro.set_rng_seed(seed)  # one seed, one result
    density = build(model, client, observed)  # log p(z | g) on flat real vectors z (chains, dim)
    located = locate(density, starts=8, steps=400, progress=progress)  # the MAP, and a Gaussian around it
    laplace = located.base

    def value_and_drift(w: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = density.value_and_grad(laplace.decode(w))
        return value, w + 0.5 * step_size**2 * gradient @ laplace.factor

    def log_proposal(w: Tensor, centre: Tensor) -> Tensor:
        return -0.5 * ((w - centre) / step_size).double().square().sum(1)

    w = torch.randn(chains, density.dim, dtype=client.dtype)
    value, centre = value_and_drift(w)
    kept: dict[str, list[Tensor]] = {"z": [], "lp": [], "acceptance_rate": []}
    for t in progress("Langevin", warmup + draws * thin):
        proposed = centre + step_size * torch.randn_like(w)
        new_value, new_centre = value_and_drift(proposed)
        log_ratio = new_value + log_proposal(w, new_centre) - value - log_proposal(proposed, centre)
        acceptance = torch.nan_to_num(log_ratio, nan=-torch.inf).clamp(max=0).exp()
        accept = torch.rand_like(acceptance) < acceptance
        w, centre = (torch.where(accept[:, None], a, b) for a, b in ((proposed, w), (new_centre, centre)))
        value = torch.where(accept, new_value, value)
        if t >= warmup and (t - warmup) % thin == 0:
            for name, part in (("z", laplace.decode(w)), ("lp", value), ("acceptance_rate", acceptance)):
                kept[name].append(part)

    stats = {name: torch.stack(parts, 1) for name, parts in kept.items()}  # (chain, draw, …)
    reasons = [*located.left.doubts]  # the search for the MAP may have stopped below it
    if client.kinks:
        reasons.append(f"the network has kinks ({', '.join(client.kinks)}), whose jumps drift does not see")
    return collect(density, stats.pop("z"), mode=located.mode, kind="sampler", stats=stats, reasons=reasons)


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
