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
from pplleak.density import Density, Model, build, room
from pplleak.density.kinks.recordings import Recordings
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation

LogFactor = Callable[[Tensor], Tensor]  # z (chains, dim) -> ℓ (chains,), float64
# Looks a move up to which this sampler is the faster one. The paper's CNN after 1000 steps, σ = 0.1: chains converge in
# minutes on images where a trial has 1.9 to 4.4, and are stuck where it has 7.4 to 9.9.
FEW = 4.5
CHAINS, COMING, COUNTED = 4, 60, 20  # of a trial: chains, moves in which they come to the posterior, moves that count
HOPELESS = 3 * FEW  # looks a move, over COUNTED moves on the way, that end it before
FLAT = 0.1  # nats by which a prior may differ from a standard normal and be one
NARROWEST = 100  # looks at one ellipse; rounding may keep a chain from finding its own height again: it then stays


def log_factor(density: Density) -> LogFactor:
    """ℓ: what the posterior has beside a standard normal in z; −inf where that is no number."""

    def plain(z: Tensor) -> tuple[Tensor]:
        return (torch.nan_to_num(density(z) + 0.5 * z.double().square().sum(1), nan=-math.inf, neginf=-math.inf),)

    recorded = Recordings(plain)
    at_once = functools.cache(lambda chains: room.at_once(density, chains))

    def factor(z: Tensor) -> Tensor:
        size = at_once(1 << (len(z) - 1).bit_length())  # of few numbers of chains, each of which costs a look
        return torch.cat([recorded(part)[0] for part in z.split(size)])

    return factor


@torch.no_grad()
def move(of: LogFactor, z: Tensor, height: Tensor, moves: int) -> tuple[Tensor, Tensor, Tensor]:
    """`moves` moves of every chain.

    No chain waits for another's ellipse, and all make the same number of moves, not of looks: the state at a set number
    of looks would more often be one that takes long to leave.

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
    """At how many points a move looks, once the chains of a short trial have come from the prior to the posterior, or
    on the way there if that is hopeless; infinite where they begin at nothing that is possible. torch's generator stays
    where it was."""
    with torch.random.fork_rng(devices=[] if client.device.type == "cpu" else [client.device]):
        torch.manual_seed(0)
        density = build(model, client, observed)
        of, z = log_factor(density), density.sample_prior(CHAINS)
        height = of(z)
        if not bool(height.isfinite().any()):
            return math.inf
        for _ in range(COMING // COUNTED + 1):
            z, height, looks = move(of, z, height, COUNTED)
            found = float(looks.mean()) / COUNTED
            if found > HOPELESS:
                break
        return found


@torch.no_grad()
def standard(density: Density) -> bool:
    """Whether the prior is a standard normal of the latents, at a few of its draws."""
    with torch.random.fork_rng(devices=[] if density.client.device.type == "cpu" else [density.client.device]):
        torch.manual_seed(0)
        z = density.sample_prior(CHAINS)
        beside = density.terms(z)[0] + 0.5 * z.double().square().sum(1)
    return float((beside.amax(-1) - beside.amin(-1)).max()) < FLAT


def narrow(model: Model, observed: Observation, client: Client) -> str:
    """Why other samplers than this one are to be preferred, "" where its moves are wide beside a standard normal."""
    try:
        if not standard(build(model, client, observed)):
            return "elliptical may mix badly here: the prior is not a standard normal of the latents"
        looks = looks_a_move(model, observed, client)
    except BadInput as error:  # every sampler will say so
        return str(error)
    if looks <= FEW:
        return ""
    return f"elliptical is slow here: in a trial its moves looked at {looks:.1f} points each, and up to {FEW:g} it pays"
