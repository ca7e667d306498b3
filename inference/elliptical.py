"""Elliptical slice sampling: exact draws without slopes, for gradients that say little beside the prior.

p(z | g) is taken for a standard normal of the latents z and what it has beside that, ℓ(z) = log p(z | g) + ½ ‖z‖². Of
a prior that is a standard normal in z (`gaussian`, `class_gaussian`) ℓ is the likelihood; under any other the draws are
as exact, and latents of another width may mix badly. A move takes a point of the ellipse through z and a draw ν
(Murray, Adams & MacKay 2010, figure 2):

    ν ~ Normal(0, I),   h = ℓ(z) − Exponential(1),   θ ~ Uniform(0, 2π),   bracket [θ − 2π, θ]
    z' = z cos θ + ν sin θ;   taken where ℓ(z') > h;   else θ bounds the bracket on its side of 0, and is drawn in it

It leaves p(z | g) as it is, whatever the model. It takes no derivative, so kinks (ReLU, max pooling) mean nothing to
it; nothing is tuned. How far a move comes is what the gradient leaves open: behind much noise, or of a trained network,
a good part of a turn, and draws are cheaper than those of samplers that follow slopes. Where the posterior is much
narrower than the prior, moves are small steps at random, and `hmc` (or `billiard`) wins.

Chains start at draws of the prior, far apart from each other: where they end up in different places, R-hat says so.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import pyro
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Model, build, ellipses
from pplleak.density.chains import copies, keep, require_superchains
from pplleak.density.decrement import settled
from pplleak.density.kinks import perceptron_posterior
from pplleak.density.refusals import require_possible
from pplleak.density.search import maximise
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent
from pplleak.runs.parallel import shares, side_by_side


def declines(model: Model, observed: Observation, client: Client) -> str:
    """Why another sampler does better, "" where none is known to: what `pplleak.studies.attack.choose` asks of networks
    with kinks. Where the posterior has a closed form between its kinks, `refractive` is much faster."""
    if not perceptron_posterior.obstacle(model, observed, client):
        return "elliptical leaves it to refractive, which is faster"
    return ellipses.narrow(model, observed, client)


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    chains: int = 16,
    draws: int = 500,
    warmup: int = 50,
    thin: int = 10,
    steps: int = 400,
    processes: int = 2,
    superchains: int = 0,
    settle: int = 5,
) -> Posterior:
    """Draws from p(x, y | g). Ctrl-C keeps what was drawn.

    Args:
        chains: Markov chains, each from a draw of the prior.
        draws: draws a chain, after warm-up.
        warmup: draws before them, in which the chains come from the prior to the posterior.
        thin: moves a draw.
        steps: Adam steps from the best chains to the MAP.
        processes: groups of chains, each drawn by a process of its own; the draws depend on their number, and not on
            the machine's. An accelerator draws all chains in one.
        superchains: warm up so many chains alone, go on from each with as many copies as make `chains` of them, and
            judge these groups (nested R-hat): a draw of many chains in one batch costs less, on an accelerator by far.
        settle: draws in which the copies part, and which are thrown away.
    """
    require_superchains(chains, superchains, settle)
    require_positive(chains=chains, draws=draws, warmup=warmup, thin=thin, steps=steps, processes=processes)
    pyro.set_rng_seed(seed)
    density = build(model, client, observed)
    log_factor = ellipses.log_factor(density)
    z = density.sample_prior(superchains or chains)
    height = log_factor(z)
    require_possible(height)
    for _ in progress("warm-up", warmup):
        z, height, _ = ellipses.move(log_factor, z, height, thin)
    best = z[(height - 0.5 * z.double().square().sum(1)).argsort(descending=True)[:8]]
    found = maximise(density, begin=best, steps=steps, lr=0.02, progress=progress).whole()
    mode, left = settled(functools.partial(density, jacobian=False), found.z[0])
    if superchains:
        z, height = (v[copies(chains, superchains).to(client.device)] for v in (z, height))
        for _ in progress("settling", settle):
            z, height, _ = ellipses.move(log_factor, z, height, thin)
    groups = shares(chains, processes if client.device.type == "cpu" else 1)

    def chain(k: int) -> Iterator[dict[str, Tensor]]:
        own, level = z[groups[k]], height[groups[k]]
        while True:
            own, level, looks = ellipses.move(log_factor, own, level, thin)
            lp = level - 0.5 * own.double().square().sum(1)
            yield {"z": own, "lp": lp, "looks": looks / thin}

    draws_of_all = side_by_side(chain, len(groups), seed, client.device)
    with contextlib.closing(draws_of_all):
        stats, reasons = keep(draws_of_all, draws, progress)
    return collect(
        density, stats.pop("z"), mode=mode, kind="sampler", stats=stats, reasons=reasons,
        attrs={"nats_left": left.number, **({"superchains": superchains} if superchains else {})},
    )  # fmt: skip


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
