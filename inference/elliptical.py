"""Elliptical slice sampling: exact draws without slopes, for gradients that say little beside the prior.

The latents z of a model are those of a standard normal and what p(z | g) has beyond it, ℓ(z) = log p(z | g) + ½ ‖z‖²:
of a prior that is a standard normal in z, as a fitted one is, ℓ is the likelihood. A move takes a point of the ellipse
through z and a draw ν (Murray, Adams & MacKay 2010, figure 2):

    ν ~ Normal(0, I),   h = ℓ(z) − Exponential(1),   θ ~ Uniform(0, 2π),   bracket [θ − 2π, θ]
    z' = z cos θ + ν sin θ;   taken where ℓ(z') > h;   else θ bounds the bracket on its side of 0, and is drawn in it

It leaves p(z | g) as it is, whatever the model. No derivative is taken, so kinks (ReLU, max pooling) mean nothing to
it; nothing is tuned. How far a move comes is what the gradient leaves open: behind much noise, or of a trained network,
a good part of a turn, and draws are cheaper than those of samplers that follow slopes. Where the posterior is much
narrower than the prior, moves are small steps at random, and `hmc` (or `billiard`) wins.

Chains start at draws of the prior, far apart from each other: where they end up in different places, R-hat says so.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build
from pplleak.density.chains import keep
from pplleak.density.decrement import settled
from pplleak.density.kinks.recordings import Recordings
from pplleak.density.refusals import require_possible
from pplleak.density.search import maximise
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent
from pplleak.runs.parallel import shares, side_by_side

LogFactor = Callable[[Tensor], Tensor]  # z (chains, dim) -> ℓ (chains,), float64
NARROWEST = 100  # looks at one ellipse; rounding may keep a chain from finding its own height again: it then stays


def factor(density: Density) -> LogFactor:
    """ℓ: what the posterior has beyond a standard normal in z."""
    recorded = Recordings(lambda z: (density(z) + 0.5 * z.double().square().sum(1),))
    return lambda z: recorded(z)[0]


@torch.no_grad()
def move(log_factor: LogFactor, z: Tensor, height: Tensor, moves: int) -> tuple[Tensor, Tensor, Tensor]:
    """`moves` moves of every chain.

    A chain does not wait for another's ellipse, but for its last move: a state that is taken at a set time would be one
    that took long to leave.

    Args:
        z, height: where the chains are (chains, dim), and ℓ there (chains,).

    Returns:
        The new z and ℓ, and at how many points each chain looked (chains,).
    """
    z, height, looks = z.clone(), height.clone(), torch.zeros_like(height)
    left, narrowed = looks + moves, torch.zeros_like(height)
    across, floor, theta, low, high = torch.empty_like(z), *(torch.empty_like(height) for _ in range(4))

    def begin(chains: Tensor) -> None:
        """A new ellipse for each of these."""
        across[chains] = torch.randn_like(z[chains])
        floor[chains] = height[chains] - torch.empty_like(height[chains]).exponential_()
        theta[chains] = 2 * math.pi * torch.rand_like(height[chains])
        low[chains], high[chains], narrowed[chains] = theta[chains] - 2 * math.pi, theta[chains], 0

    begin(left.nonzero()[:, 0])
    while len(active := left.nonzero()[:, 0]):
        turn = theta[active][:, None].to(z.dtype)
        point = z[active] * turn.cos() + across[active] * turn.sin()
        found = log_factor(point)
        looks[active] += 1
        taken = found > floor[active]
        stays = ~taken & (narrowed[active] >= NARROWEST)
        z[active[taken]], height[active[taken]] = point[taken], found[taken]
        over = active[taken | stays]
        left[over] -= 1
        begin(over[left[over] > 0])
        shrunk = active[~(taken | stays)]
        back = theta[shrunk] < 0
        low[shrunk] = torch.where(back, theta[shrunk], low[shrunk])
        high[shrunk] = torch.where(back, high[shrunk], theta[shrunk])
        theta[shrunk] = low[shrunk] + (high[shrunk] - low[shrunk]) * torch.rand_like(height[shrunk])
        narrowed[shrunk] += 1
    return z, height, looks


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
    """
    require_positive(chains=chains, draws=draws, warmup=warmup, thin=thin, steps=steps, processes=processes)
    pyro.set_rng_seed(seed)
    density = build(model, client, observed)
    log_factor = factor(density)
    z = density.sample_prior(chains)
    height = torch.cat([log_factor(part) for part in z.split(64)])
    require_possible(height)
    for _ in progress("warm-up", warmup):
        z, height, _ = move(log_factor, z, height, thin)
    best = z[(height - 0.5 * z.double().square().sum(1)).argsort(descending=True)[:8]]
    found = maximise(density, begin=best, steps=steps, lr=0.02, progress=progress).whole()
    mode, left = settled(functools.partial(density, jacobian=False), found.z[0])
    groups = shares(chains, processes if client.device.type == "cpu" else 1)

    def chain(k: int) -> Iterator[dict[str, Tensor]]:
        own, level = z[groups[k]], height[groups[k]]
        while True:
            own, level, looks = move(log_factor, own, level, thin)
            lp = level - 0.5 * own.double().square().sum(1)
            yield {"z": own, "lp": lp, "looks": looks / thin}

    draws_of_all = side_by_side(chain, len(groups), seed, client.device)
    with contextlib.closing(draws_of_all):
        stats, reasons = keep(draws_of_all, draws, progress)
    return collect(
        density, stats.pop("z"), mode=mode, kind="sampler", stats=stats, reasons=[*left.doubts, *reasons],
        attrs={"nats_left": left.number},
    )  # fmt: skip


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
