"""Moves of elliptical slice sampling (`inference/elliptical.py` has the equations), and how far they come.

Whoever chooses a sampler asks before: where the prior's ellipses hardly narrow, no sampler that follows slopes is as
cheap; where they narrow to a few degrees, all are better.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build
from pplleak.density.kinks.recordings import Recordings
from pplleak.federation.observation import Observation

LogFactor = Callable[[Tensor], Tensor]  # z (chains, dim) -> ℓ (chains,), float64
FEW = 4.5  # looks a move up to which the sampler is the faster one (`benchmarks/results/exact_images.csv`)
TRIAL = (4, 60, 20)  # of a trial: chains, moves to get there, and moves that are counted
NARROWEST = 100  # looks at one ellipse; rounding may keep a chain from finding its own height again: it then stays


def log_factor(density: Density) -> LogFactor:
    """ℓ: what the posterior has beyond a standard normal in z."""
    recorded = Recordings(lambda z: (density(z) + 0.5 * z.double().square().sum(1),))
    return lambda z: recorded(z)[0]


@torch.no_grad()
def move(of: LogFactor, z: Tensor, height: Tensor, moves: int) -> tuple[Tensor, Tensor, Tensor]:
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
        found = of(point)
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


@functools.lru_cache(maxsize=1)  # two inferences ask of the same observation, one after the other
@torch.no_grad()
def looks_a_move(model: Model, observed: Observation, client: Client) -> float:
    """At how many points a move looks, once the chains of a short trial have come from the prior to the posterior;
    infinite where they begin at nothing that is possible. torch's generator stays where it was."""
    chains, before, counted = TRIAL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        density = build(model, client, observed)
        of, z = log_factor(density), density.sample_prior(chains)
        height = of(z)
        if not bool(height.isfinite().any()):
            return math.inf
        z, height, _ = move(of, z, height, before)
        return float(move(of, z, height, counted)[2].mean()) / counted


def narrow(model: Model, observed: Observation, client: Client) -> str:
    """Why the posterior is too narrow beside the prior for such moves, "" where it is not."""
    looks = looks_a_move(model, observed, client)
    if looks <= FEW:
        return ""
    return f"the moves of elliptical are small here: in a trial, each took {looks:.1f} densities, and {FEW:g} are few"
