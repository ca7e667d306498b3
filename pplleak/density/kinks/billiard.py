"""The kernel of `inference/billiard.py`: kick, drift to the next wall, cross or reflect, accept or reject.

Walls are curved here, and the next one on an arc is searched for. See that file for the equations. Chains meet
different numbers of walls and need different numbers of looks, so none waits for another: every chain is in a phase of
its own (`Phase`), and whatever most of them are waiting for is computed for these in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from pplleak.density.hamiltonian import DIVERGED, Info
from pplleak.density.kinks.perceptron import flipped
from pplleak.density.kinks.walls import MAX_BRACKETS, Brackets, Field, beyond, next_wall, turned

MAX_EVENTS = 100  # walls in one drift; a trajectory that meets more is rejected, as its reverse would be
ARCS = 2**12  # whose ways back are looked at in one batch, at most


@dataclass(frozen=True, eq=False)
class State:
    """Where the chains are: w (chains, dim), U and V (chains,), ∇V (chains, dim), h and pattern (chains, units)."""

    w: Tensor
    energy: Tensor
    soft: Tensor
    force: Tensor
    h: Tensor
    pattern: Tensor

    def rows(self, which: slice | Tensor) -> State:
        """Some of the chains."""
        return State(*(value[which] for value in vars(self).values()))


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


class Phase(IntEnum):
    LOOK = 0  # at the end of the arc: is a unit beyond its wall there?
    SEARCH = 1  # for the wall, between the arc's two ends
    MEET = 2  # at a wall
    ARRIVED = 3  # at the end of the drift
    IDLE = 4


@dataclass(frozen=True, eq=False)
class Arcs:
    """Arcs that were flown, seen from their ends, before what happens there: chain (arcs,), w and p turned round
    (arcs, dim), h and pattern (arcs, units), `left` (arcs,) of the way back through the drift they are part of. They
    began at the wall of `unit` (arcs,) at `origin` (arcs, dim); −1: with the drift."""

    chain: Tensor
    w: Tensor
    p: Tensor
    h: Tensor
    pattern: Tensor
    left: Tensor
    unit: Tensor
    origin: Tensor

    @torch.no_grad()
    def other(self, field: Field) -> Tensor:
        """The arcs (arcs,) bool whose way back is another one: it meets another wall first, or one where there was
        none."""
        h_end = field.walls(turned(self.w, self.p, self.left)[0])
        hit = beyond(h_end, self.pattern).any(1)
        left, unit, failed = self.left.clone(), torch.full_like(self.unit, -1), torch.zeros_like(hit)
        if bool(hit.any()):
            w, p, pattern = self.w[hit], self.p[hit], self.pattern[hit]
            found = next_wall(field, w, p, self.left[hit], pattern, self.h[hit], h_end[hit])
            left[hit], unit[hit], _, failed[hit] = found
        return failed | (unit != self.unit) | ~near(turned(self.w, self.p, left)[0], self.origin)


@dataclass(eq=False)
class Flights:
    """Chains on their way, tensors that are written in place: w, p (chains, dim), h, pattern (chains, units) where
    their arcs begin, the wall there, `unit` (chains,) or −1 at the beginning of the drift, which is `origin`; the time
    `left` (chains,) of the drift, and how many walls were met in it; the arcs that led to a wall or away from one."""

    phase: Tensor
    w: Tensor
    p: Tensor
    h: Tensor
    pattern: Tensor
    unit: Tensor
    left: Tensor
    met: Tensor
    search: Brackets
    arcs: list[Arcs]

    @staticmethod
    def launched(w: Tensor, p: Tensor, h: Tensor, pattern: Tensor, size: float) -> Flights:
        none = torch.zeros(len(w), dtype=torch.long, device=w.device)
        return Flights(
            none + Phase.LOOK, w.clone(), p.clone(), h.clone(), pattern.clone(), none - 1,
            torch.full_like(w[:, 0], size), none.clone(), Brackets.empty(h), [],
        )  # fmt: skip

    def relaunch(self, at: Tensor, p: Tensor, size: float) -> None:
        self.p[at], self.unit[at], self.left[at], self.met[at], self.phase[at] = p, -1, size, 0, Phase.LOOK

    def arrive(self, at: Tensor, w: Tensor, p: Tensor, h: Tensor, spent: Tensor, wall: bool) -> None:
        """Come to the end of an arc: (w, p, h), at a wall or at the end of the drift, of which `spent` is over."""
        bent = self.unit[at] >= 0  # without a wall at either end an arc is its own way back
        kept = slice(None) if wall else bent
        if wall or bool(bent.any()):
            i = at[kept]
            arc = Arcs(i, w[kept], -p[kept], h[kept], self.pattern[i], spent[kept], self.unit[i], self.w[i])
            self.arcs.append(arc)
        self.w[at], self.p[at], self.h[at] = w, p, h

    @torch.no_grad()
    def look(self, at: Tensor, field: Field, size: float) -> Tensor:
        """Find h at the ends of arcs and inside brackets, and what follows from it. Returns the chains that met too
        many walls, or did not find one where one must be."""
        looking = self.phase[at] == Phase.LOOK
        t = torch.where(looking, self.left[at], self.search.t[at])
        w, p = turned(self.w[at], self.p[at], t)
        here, pattern = field.walls(w), self.pattern[at]
        hit = beyond(here, pattern).any(1)
        ended, opened, met = looking & ~hit, looking & hit, ~looking
        rows = at[ended]
        if len(rows):
            self.arrive(rows, w[ended], p[ended], here[ended], torch.full_like(t[ended], size), wall=False)
            self.phase[rows] = Phase.ARRIVED
        rows = at[opened]
        if len(rows):
            self.search.open(rows, t[opened], self.h[rows], here[opened])
            self.phase[rows] = Phase.SEARCH
        met[~looking] = self.search.narrow(at[~looking], here[~looking], pattern[~looking])
        rows = at[met]
        if len(rows):
            unit = self.search.unit[rows]
            on = here[met].scatter(1, unit[:, None], 0.0)
            self.left[rows] -= t[met]
            self.arrive(rows, w[met], p[met], on, size - self.left[rows], wall=True)
            self.unit[rows] = unit
            self.met[rows] += 1
            self.phase[rows] = Phase.MEET
        searching = ~ended & ~met
        self.search.guess(at[searching], pattern[searching])
        return at[searching & (self.search.looks[at] >= MAX_BRACKETS) | (self.met[at] >= MAX_EVENTS)]

    def bend(self, at: Tensor, field: Field, power: float, jumps: bool) -> None:
        """Cross the wall or be reflected by it."""
        w, p, unit, pattern = self.w[at], self.p[at], self.unit[at], self.pattern[at]
        n, jump = field.meet(w, pattern, unit, power, jumps)
        n = n / n.norm(dim=1, keepdim=True)
        rate = (p * n).sum(1)
        spare = rate.square()
        if jump is not None:
            spare = spare - 2 * jump.to(rate.dtype)
        cross = spare > 0
        bent = torch.where(cross, rate.sign() * spare.clamp(min=0).sqrt(), -rate)
        self.p[at] = p + (bent - rate)[:, None] * n
        self.pattern[at] = torch.where(cross[:, None], flipped(pattern, unit), pattern)
        self.phase[at] = Phase.LOOK

    def lost(self, field: Field) -> Tensor:
        """The chains (chains,) bool of which the way back is another one along one of their arcs."""
        lost = torch.zeros(len(self.w), dtype=torch.bool, device=self.w.device)
        if self.arcs:
            together = Arcs(*(torch.cat(part) for part in zip(*(vars(a).values() for a in self.arcs), strict=True)))
            pieces = (v.split(ARCS) for v in vars(together).values())
            for piece in map(Arcs, *pieces):
                lost[piece.chain[piece.other(field)]] = True
        return lost


def near(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().amax(1) < 100 * math.sqrt(torch.finfo(a.dtype).eps)


# (chains, w, p, pattern) at the end of a drift -> p behind it, and which of the chains drift on
Arrive = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def fly(
    field: Field, w: Tensor, p: Tensor, h: Tensor, pattern: Tensor, size: float, power: float, jumps: bool, then: Arrive
) -> Drift:
    """Drifts of `size`, as many as `then` asks for; a chain is lost where the way back of one is another one.

    A wall that is crossed twice between two looks at it was not seen, and need not be missed from the other side. The
    way there may only be taken where the way back is its inverse (Zappa, Holmes-Cerfon & Goodman 2018): where every
    arc, flown from its end, meets the wall first that it began at. What happens at the walls is undone by the same law.
    So the arcs' ways back are independent of each other, and all of them are flown in one batch in the end.
    """
    f = Flights.launched(w, p, h, pattern, size)
    total, failed = torch.zeros_like(f.met), torch.zeros_like(f.met, dtype=torch.bool)
    while True:
        waiting = torch.bincount(f.phase, minlength=len(Phase)).tolist()
        looks = waiting[Phase.LOOK] + waiting[Phase.SEARCH]
        if looks >= max(waiting[Phase.MEET], waiting[Phase.ARRIVED], 1):
            gone = f.look((f.phase <= Phase.SEARCH).nonzero()[:, 0], field, size)
            failed[gone], f.phase[gone] = True, Phase.IDLE
        elif waiting[Phase.MEET] > waiting[Phase.ARRIVED]:
            f.bend((f.phase == Phase.MEET).nonzero()[:, 0], field, power, jumps)
        elif waiting[Phase.ARRIVED]:
            i = (f.phase == Phase.ARRIVED).nonzero()[:, 0]
            total[i] += f.met[i]
            behind, onwards = then(i, f.w[i], f.p[i], f.pattern[i])
            f.p[i], f.phase[i] = behind, Phase.IDLE
            f.relaunch(i[onwards], behind[onwards], size)
        else:
            break
    return Drift(f.w, f.p, f.h, f.pattern, total, failed | f.lost(field))


def drift(
    field: Field, w: Tensor, p: Tensor, h: Tensor, pattern: Tensor, size: float, power: float, jumps: bool = True
) -> Drift:
    """The rotation by `size`, refracted or reflected at every wall on the way; lost where the way back is another one.

    jumps=False takes every ΔV for zero: the Metropolis test still keeps the target, but accepts little.
    """
    return fly(
        field, w, p, h, pattern, size, power, jumps, lambda i, w, p, m: (p, torch.zeros_like(i, dtype=torch.bool))
    )


def trajectory(
    field: Field, state: State, p: Tensor, size: float, steps: int, power: float = 1.0
) -> tuple[Drift, Tensor, Tensor]:
    """`steps` leapfrog steps of every chain: where they end, and V and ∇V there."""
    soft, force, todo = state.soft.clone(), state.force.clone(), torch.full_like(p[:, 0], steps, dtype=torch.long)

    def kick(i: Tensor, w: Tensor, p: Tensor, pattern: Tensor) -> tuple[Tensor, Tensor]:
        soft[i], force[i] = field.soft_energy_and_force(w, pattern, power)
        todo[i] -= 1
        onwards = todo[i] > 0
        return p - 0.5 * size * (1 + onwards.to(p))[:, None] * (force[i] - w), onwards

    start = p - 0.5 * size * (force - state.w)
    return fly(field, state.w, start, state.h, state.pattern, size, power, True, kick), soft, force


@dataclass(frozen=True, eq=False)
class Walk:
    """What a trajectory met, each (chains,): walls; whether it was lost, its way back being another one; and the
    acceptance that V in the place of U would have given it.

    The last tells ε from β: a smaller step brings it to one, and leaves to `acceptance` what the gates miss.
    """

    walls: Tensor
    lost: Tensor
    soft_acceptance: Tensor


def step(field: Field, state: State, size: float, steps: int, power: float = 1.0) -> tuple[State, Info, Walk]:
    """One trajectory of every chain and its Metropolis test; returns the state and what happened."""
    start = torch.randn_like(state.w)
    end, soft, force = trajectory(field, state, start, size, steps, power)
    new = State(end.w, field.energy(end.w, power), soft, force, end.h, end.pattern)
    kinetic = 0.5 * start.double().square().sum(1)
    gained = 0.5 * end.p.double().square().sum(1) - kinetic

    def acceptance_of(change: Tensor) -> Tensor:
        change = torch.where(end.lost, math.inf, torch.nan_to_num(change, nan=math.inf))
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
    info = Info(acceptance, kept.energy + kinetic + torch.where(accept, gained, 0.0), (error > DIVERGED) & ~end.lost)
    return kept, info, Walk(end.met, end.lost, acceptance_of(error))
