"""The kernel of `inference/billiard.py`: kick, drift to the next wall, cross or reflect, accept or reject.

Walls are curved here, and the next one on an arc is searched for. See that file for the equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pplleak.density.hamiltonian import DIVERGED, Info
from pplleak.density.kinks.walls import Field, beyond, next_wall, turned

MAX_EVENTS = 100  # walls in one drift; a trajectory that meets more is rejected, as its reverse would be


@dataclass(frozen=True, eq=False)
class State:
    """Where the chains are: w (chains, dim), U and V (chains,), ∇V (chains, dim), h and pattern (chains, units)."""

    w: Tensor
    energy: Tensor
    soft: Tensor
    force: Tensor
    h: Tensor
    pattern: Tensor


def place(field: Field, w: Tensor, power: float = 1.0) -> State:
    """The state at w, with the pattern read off the position. power: exponent of the likelihood."""
    with torch.no_grad():
        h = field.walls(w)
    soft, force = field.soft_energy_and_force(w, h > 0, power)
    return State(w, field.energy(w, power), soft, force, h, h > 0)


@dataclass(frozen=True, eq=False)
class Drift:
    """Where a drift ends: w, p (chains, dim), h, pattern (chains, units); walls met and lost chains (chains,)."""

    w: Tensor
    p: Tensor
    h: Tensor
    pattern: Tensor
    met: Tensor
    lost: Tensor


@dataclass(frozen=True, eq=False)
class Log:
    """What chains met, event by event, as they were before: w, p (events, chains, dim), unit, pattern (…, units)."""

    w: Tensor
    p: Tensor
    unit: Tensor
    pattern: Tensor


# (number of the event, chains, w, p, unit, pattern) at a wall -> p and pattern behind it, and where that is an error
Met = tuple[Tensor, Tensor, Tensor]
Meet = Callable[[int, Tensor, Tensor, Tensor, Tensor, Tensor], Met]


def drift(
    field: Field, w: Tensor, p: Tensor, h: Tensor, pattern: Tensor, size: float, power: float, jumps: bool = True
) -> Drift:
    """The rotation by `size`, refracted or reflected at every wall on the way; lost where the way back is another one.

    A wall that is crossed twice between two looks at it was not seen, and need not be missed from the other side. The
    way there may only be taken where the way back is its inverse (Zappa, Holmes-Cerfon & Goodman 2018). The way back
    looks for the walls only: at one that was met on the way there, the law undoes what it did.
    jumps=False takes every ΔV for zero: the Metropolis test still keeps the target, but accepts little.
    """

    def law(_: int, chains: Tensor, w: Tensor, p: Tensor, unit: Tensor, pattern: Tensor) -> Met:
        n = field.normal(w, unit)
        n = n / n.norm(dim=1, keepdim=True)
        other = pattern.scatter(1, unit[:, None], ~pattern.gather(1, unit[:, None]))
        rate = (p * n).sum(1)
        spare = rate.square()
        if jumps:
            before, after = field.soft_energy(w.repeat(2, 1), torch.cat([pattern, other]), power).chunk(2)
            spare = spare - 2 * (after - before).to(rate.dtype)
        cross = spare > 0
        bent = torch.where(cross, rate.sign() * spare.clamp(min=0).sqrt(), -rate)
        return p + (bent - rate)[:, None] * n, torch.where(cross[:, None], other, pattern), torch.zeros_like(cross)

    def memory(k: int, chains: Tensor, w: Tensor, p: Tensor, unit: Tensor, pattern: Tensor) -> Met:
        number = there.met[met][chains] - 1 - k
        at = (number.clamp(min=0), met.nonzero()[chains, 0])
        known = (number >= 0) & (log.unit[at] == unit) & near(log.w[at], w)
        return torch.where(known[:, None], -log.p[at], p), log.pattern[at], ~known

    there, log = fly(field, w, p, h, pattern, size, law)
    met = there.met > 0
    if not bool(met.any()):
        return there
    back, _ = fly(field, there.w[met], -there.p[met], there.h[met], there.pattern[met], size, memory)
    returned = (back.met == there.met[met]) & near(back.w, w[met]) & (back.pattern == pattern[met]).all(1)
    lost = there.lost.clone()
    lost[met] |= back.lost | ~returned
    return replace(there, lost=lost)


def near(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().amax(1) < 100 * math.sqrt(torch.finfo(a.dtype).eps)


def fly(field: Field, w: Tensor, p: Tensor, h: Tensor, pattern: Tensor, size: float, meet: Meet) -> tuple[Drift, Log]:
    """The rotation by `size`, with `meet` to say what happens at a wall; and what was met on the way."""
    w, p, h, pattern = w.clone(), p.clone(), h.clone(), pattern.clone()
    left = torch.full_like(w[:, 0], size)
    met = torch.zeros(len(w), dtype=torch.long, device=w.device)
    lost = torch.zeros(len(w), dtype=torch.bool, device=w.device)
    live = torch.arange(len(w), device=w.device)
    log = []
    for k in range(MAX_EVENTS):
        end, p_end = turned(w[live], p[live], left[live])
        with torch.no_grad():
            h_end = field.walls(end)
        hit = beyond(h_end, pattern[live]).any(1)
        w[live[~hit]], p[live[~hit]], h[live[~hit]] = end[~hit], p_end[~hit], h_end[~hit]
        live, h_end = live[hit], h_end[hit]
        if not len(live):
            break
        here = pattern[live]
        t, unit, h[live], failed = next_wall(field, w[live], p[live], left[live], here, h[live], h_end)
        w[live], p[live] = turned(w[live], p[live], t)
        left[live] -= t
        met[live] += 1
        log.append((w.clone(), p.clone(), torch.zeros_like(met).index_put((live,), unit), pattern.clone()))
        p[live], pattern[live], unexpected = meet(k, live, w[live], p[live], unit, here)
        lost[live] = failed | unexpected
        live = live[~lost[live]]
        if not len(live):
            break
    lost[live] = True
    drifted = Drift(w, p, h, pattern, met, lost)
    return drifted, Log(*map(torch.stack, zip(*log, strict=True))) if log else Log(w[:0], p[:0], met[:0], pattern[:0])


@dataclass(frozen=True, eq=False)
class Walk:
    """What a trajectory met, each (chains,): walls; and the acceptance that V in the place of U would have given it.

    The latter tells ε from β: a smaller step brings it to one, and leaves to `acceptance` what the gates miss.
    """

    walls: Tensor
    soft_acceptance: Tensor


def step(field: Field, state: State, size: float, steps: int, power: float = 1.0) -> tuple[State, Info, Walk]:
    """One trajectory of every chain and its Metropolis test; returns the state and what happened."""
    start, force, w, h, pattern = torch.randn_like(state.w), state.force, state.w, state.h, state.pattern
    p, soft = start, state.soft
    met = torch.zeros(len(p), dtype=torch.long, device=p.device)
    lost = torch.zeros(len(p), dtype=torch.bool, device=p.device)
    for _ in range(steps):
        now = drift(field, w, p - 0.5 * size * (force - w), h, pattern, size, power)
        w, h, pattern = now.w, now.h, now.pattern
        soft, force = field.soft_energy_and_force(w, pattern, power)
        p, met, lost = now.p - 0.5 * size * (force - w), met + now.met, lost | now.lost
    new = State(w, field.energy(w, power), soft, force, h, pattern)
    kinetic = 0.5 * start.double().square().sum(1)
    gained = 0.5 * p.double().square().sum(1) - kinetic

    def acceptance_of(change: Tensor) -> Tensor:
        change = torch.where(lost, math.inf, torch.nan_to_num(change, nan=math.inf))
        return (-change).clamp(max=0).exp()

    acceptance = acceptance_of(new.energy - state.energy + gained)
    accept = torch.rand_like(acceptance) < acceptance
    kept = State(
        *(
            torch.where(accept.reshape(-1, *(1,) * (a.dim() - 1)), a, b)
            for a, b in zip(vars(new).values(), vars(state).values(), strict=True)
        )
    )
    error = new.soft - state.soft + gained
    info = Info(acceptance, kept.energy + kinetic + torch.where(accept, gained, 0.0), (error > DIVERGED) & ~lost)
    return kept, info, Walk(met, acceptance_of(error))
