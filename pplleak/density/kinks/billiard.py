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
from pplleak.density.kinks.walls import MAX_BRACKETS, Brackets, Field, beyond, turned

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

    def rows(self, which: slice) -> State:
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
    KICK = 4  # the same, and its way back is being looked at
    IDLE = 5


@dataclass(eq=False)
class Flights:
    """Rows on their way, tensors that are written in place: w, p (rows, dim), h, pattern (rows, units) where their arcs
    begin, the time `left` (rows,) of the drift, and the walls met in it: `met` (rows,), and each as it was before it,
    log_w, log_p (rows, events, dim), log_unit (rows, events), log_pattern (rows, events, units)."""

    phase: Tensor
    w: Tensor
    p: Tensor
    h: Tensor
    pattern: Tensor
    left: Tensor
    met: Tensor
    search: Brackets
    log_w: Tensor
    log_p: Tensor
    log_unit: Tensor
    log_pattern: Tensor

    @staticmethod
    def idle(rows: int, w: Tensor, h: Tensor) -> Flights:
        """`rows` of them, as wide as w (…, dim) and h (…, units)."""

        def room(*shape: int, dtype: torch.dtype = w.dtype) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=w.device)

        def log(*shape: int, dtype: torch.dtype = w.dtype) -> Tensor:  # read where it was written alone
            return torch.empty(rows, MAX_EVENTS, *shape, dtype=dtype, device=w.device)

        dim, units = w.shape[1], h.shape[1]
        return Flights(
            room(dtype=torch.long) + Phase.IDLE, room(dim), room(dim), room(units), room(units, dtype=torch.bool),
            room(), room(dtype=torch.long), Brackets.empty(room(units, dtype=h.dtype)),
            log(dim), log(dim), log(dtype=torch.long), log(units, dtype=torch.bool),
        )  # fmt: skip

    def launch(self, at: Tensor, w: Tensor, p: Tensor, h: Tensor, pattern: Tensor, size: float) -> None:
        self.w[at], self.p[at], self.h[at], self.pattern[at] = w, p, h, pattern
        self.left[at], self.met[at], self.phase[at] = size, 0, Phase.LOOK

    @torch.no_grad()
    def look(self, at: Tensor, field: Field) -> Tensor:
        """Find h at the ends of arcs and inside brackets, and what follows from it. Returns the rows that met too many
        walls, or did not find one where one must be."""
        looking = self.phase[at] == Phase.LOOK
        t = torch.where(looking, self.left[at], self.search.t[at])
        w, p = turned(self.w[at], self.p[at], t)
        here, pattern = field.walls(w), self.pattern[at]
        hit = beyond(here, pattern).any(1)
        ended, opened, met = looking & ~hit, looking & hit, ~looking
        rows = at[ended]
        self.w[rows], self.p[rows], self.h[rows], self.phase[rows] = w[ended], p[ended], here[ended], Phase.ARRIVED
        rows = at[opened]
        self.search.open(rows, t[opened], self.h[rows], here[opened])
        self.phase[rows] = Phase.SEARCH
        met[~looking] = self.search.narrow(at[~looking], here[~looking], pattern[~looking])
        rows = at[met]
        if len(rows):
            unit, k = self.search.unit[rows], self.met[rows]
            self.w[rows], self.p[rows], self.h[rows] = w[met], p[met], here[met].scatter(1, unit[:, None], 0.0)
            self.log_w[rows, k], self.log_p[rows, k], self.log_pattern[rows, k] = w[met], p[met], pattern[met]
            self.log_unit[rows, k] = unit
            self.left[rows] -= t[met]
            self.met[rows] += 1
            self.phase[rows] = Phase.MEET
        searching = ~ended & ~met
        self.search.guess(at[searching], pattern[searching])
        return at[searching & (self.search.looks[at] >= MAX_BRACKETS) | (self.met[at] >= MAX_EVENTS)]

    def bend(self, at: Tensor, field: Field, power: float, jumps: bool) -> None:
        """Cross the wall or be reflected by it."""
        w, p, unit, pattern = self.w[at], self.p[at], self.search.unit[at], self.pattern[at]
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

    def unbend(self, at: Tensor, there: Tensor, events: Tensor) -> Tensor:
        """Undo on the way back what happened at this wall on the way there, in rows `there`, which met `events` walls
        (len(at),). Returns the rows where it is another wall."""
        k = events - self.met[at]
        known = k >= 0
        k = k.clamp(min=0)
        known &= (self.log_unit[there, k] == self.search.unit[at]) & near(self.log_w[there, k], self.w[at])
        self.p[at], self.pattern[at], self.phase[at] = -self.log_p[there, k], self.log_pattern[there, k], Phase.LOOK
        return at[~known]


def near(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().amax(1) < 100 * math.sqrt(torch.finfo(a.dtype).eps)


# (chains, w, p, pattern) at the end of a drift -> p behind it, and which of the chains drift on
Arrive = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def fly(
    field: Field, w: Tensor, p: Tensor, h: Tensor, pattern: Tensor, size: float, power: float, jumps: bool, then: Arrive
) -> Drift:
    """Drifts of `size`, as many as `then` asks for; a chain is lost where the way back of one is another one.

    A wall that is crossed twice between two looks at it was not seen, and need not be missed from the other side. The
    way there may only be taken where the way back is its inverse (Zappa, Holmes-Cerfon & Goodman 2018). The way back
    looks for the walls only: at one that was met on the way there, the law undoes what it did. It is looked at while
    its chain goes on.
    """
    count, device = len(w), w.device
    chains = torch.arange(count, device=device)
    f = Flights.idle(3 * count, w, h)  # chains on their way, on their way back, and what the way there met
    way, back, kept = chains, chains + count, chains + 2 * count
    f.launch(way, w, p, h, pattern, size)
    start_w, start_pattern = w.clone(), pattern.clone()
    goal_w, goal_pattern, events = w.clone(), pattern.clone(), torch.zeros_like(chains)
    total, lost = torch.zeros_like(chains), torch.zeros(count, dtype=torch.bool, device=device)

    def lose(rows: Tensor) -> None:
        lost[rows % count] = True
        f.phase[way[lost]] = f.phase[back[lost]] = Phase.IDLE

    while True:
        here, there = f.phase[way], f.phase[back]
        i = chains[there == Phase.MEET]
        if len(i):
            lose(f.unbend(back[i], kept[i], events[i]))
        i = chains[there == Phase.ARRIVED]
        if len(i):
            f.phase[back[i]] = Phase.IDLE
            right = (f.met[back[i]] == events[i]) & near(f.w[back[i]], goal_w[i])
            lose(i[~(right & (f.pattern[back[i]] == goal_pattern[i]).all(1))])
        i = chains[(here == Phase.ARRIVED) & (f.phase[back] == Phase.IDLE) & ~lost]
        if len(i):
            f.phase[i] = Phase.KICK
            total[i] += f.met[i]
            i = i[f.met[i] > 0]
            events[i], goal_w[i], goal_pattern[i] = f.met[i], start_w[i], start_pattern[i]
            most = int(f.met[i].max()) if len(i) else 0
            for log in (f.log_w, f.log_p, f.log_unit, f.log_pattern):
                log[kept[i], :most] = log[i, :most]
            f.launch(back[i], f.w[i], -f.p[i], f.h[i], f.pattern[i], size)
        looks = (f.phase <= Phase.SEARCH).nonzero()[:, 0]
        bends, kicks = ((f.phase[way] == phase).nonzero()[:, 0] for phase in (Phase.MEET, Phase.KICK))
        if len(looks) >= max(len(bends), len(kicks), 1):
            lose(f.look(looks, field))
        elif len(bends) > len(kicks):
            f.bend(bends, field, power, jumps)
        elif len(kicks):
            f.p[kicks], onwards = then(kicks, f.w[kicks], f.p[kicks], f.pattern[kicks])
            f.phase[kicks] = Phase.IDLE
            i = kicks[onwards]
            start_w[i], start_pattern[i] = f.w[i], f.pattern[i]
            f.launch(i, f.w[i], f.p[i], f.h[i], f.pattern[i], size)
        elif not bool(((f.phase[way] == Phase.ARRIVED) & ~lost).any()):
            break
    return Drift(f.w[way], f.p[way], f.h[way], f.pattern[way], total, lost)


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
    """What a trajectory met, each (chains,): walls; and the acceptance that V in the place of U would have given it.

    The latter tells ε from β: a smaller step brings it to one, and leaves to `acceptance` what the gates miss.
    """

    walls: Tensor
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
    return kept, info, Walk(end.met, acceptance_of(error))
