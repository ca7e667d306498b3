"""What warm-up finds out about a field of walls and gates: how sharp the gates, how many steps, how cheap the jumps.

Candidates are judged by trajectories that are run anyway: effective draws, a / (2 − a) a draw at acceptance a, for
their cost in forces. Costs are counted, not timed: one seed, one result.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from pplleak.density.kinks.billiard import State, place, step
from pplleak.density.kinks.gates import gated
from pplleak.density.kinks.head import head
from pplleak.density.kinks.walls import Field, LateJumps, beyond, next_wall, turned
from pplleak.density.step_size import TRAJECTORY, jittered
from pplleak.progress import ProgressBar, silent

# β that are tried, the first one while the chains cool. What a draw is worth is flat in β: factors of two apart, the
# luck of a few trajectories decides, and costs more than the best one gains.
SHARPNESS = (200.0, 50.0, 800.0)
STEPS = (16, 8, 32)  # leapfrog steps that are tried, the first while β is found; any number between may win
WALL, FULL = 1.0, 0.7  # what a wall costs in forces, its search there and back; ΔV if it is that of all layers
# nats by which a ΔV without the first layers may be off. Errors of a trajectory's walls add up: of sixteen .2 each take
# an acceptance of .75 down to .6, and with it as much of the effective draws as their FULL would cost
VAGUE = 0.2


def sharpened(field: Field, beta: float) -> Field:
    """The same field with gates of another sharpness."""
    gates = gated(field.exact.client, beta)
    return replace(field, soft=replace(field.soft, client=gates.client), gates=gates, late=None)


@torch.no_grad()
def met(field: Field, state: State, rounds: int = 60, span: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """Walls as trajectories meet them, the first ones on random arcs from where the chains are: w (walls, dim), the
    pattern before it and the unit."""
    found = [(state.w[:0], state.pattern[:0], torch.zeros(0, dtype=torch.long, device=state.w.device))]
    for _ in range(rounds):
        p, time = torch.randn_like(state.w), torch.full_like(state.w[:, 0], span)
        h_end = field.walls(turned(state.w, p, time)[0])
        hit = beyond(h_end, state.pattern).any(1)
        if not bool(hit.any()):
            continue
        w, p, pattern = state.w[hit], p[hit], state.pattern[hit]
        t, unit, _, failed = next_wall(field, w, p, time[hit], pattern, state.h[hit], h_end[hit])
        found.append((turned(w, p, t)[0][~failed], pattern[~failed], unit[~failed]))
    w, pattern, unit = (torch.cat(parts) for parts in zip(*found, strict=True))
    return w, pattern, unit


def calibrated(field: Field, state: State) -> Field:
    """The field with ΔV from the layers behind the first wall alone, in closed form where there is one, and the share
    of those before it guessed; or as it is, where the guess is not good enough.

    The share is a little of theirs and a mean of that unit's own, drawn to zero as by one wall that leaves nothing out:
    least squares over walls as trajectories meet them.
    """
    full = replace(field, late=None)
    if field.gates.late is None:
        return full
    w, pattern, unit = met(full, state)
    if not len(unit):
        return full
    none = torch.zeros(state.h.shape[1], dtype=torch.float64, device=state.w.device)
    count = none.index_add(0, unit, torch.ones_like(none[unit]))
    density, closed = replace(field.soft, client=field.gates.late), head(field.idle, field.gates, state.w[:1])
    sign = 1 - 2 * pattern.gather(1, unit[:, None])[:, 0].double()
    late = sign * replace(field, late=LateJumps(density, 1.0, none)).jump(w, pattern, unit, 1.0)
    gap = sign * full.jump(w, pattern, unit, 1.0) - late

    def mean(v: Tensor) -> Tensor:
        return none.index_add(0, unit, v) / (count + 1)

    slope = (late * (gap - mean(gap)[unit])).sum() / (late * (late - mean(late)[unit])).sum()
    left = gap - slope * late
    others = (none.index_add(0, unit, left)[unit] - left) / count[unit]  # a gap is judged by the mean of the others
    if not float((left - others).square().mean().sqrt()) < VAGUE:
        return full
    if closed is not None:
        same = sign * replace(field, late=LateJumps(closed, 1.0, none)).jump(w, pattern, unit, 1.0)
        closed = closed if torch.allclose(same, late, rtol=1e-3, atol=1e-2) else None
    return replace(field, late=LateJumps(closed or density, 1 + float(slope), mean(left)))


@dataclass
class Trial:
    """A field, and what trajectories of all chains in it gave, each on average: steps, acceptance, walls, lost ones."""

    field: Field
    steps: list[int] = dataclasses.field(default_factory=list)
    acceptance: list[float] = dataclasses.field(default_factory=list)
    walls: list[float] = dataclasses.field(default_factory=list)
    lost: list[float] = dataclasses.field(default_factory=list)

    def run(self, state: State, steps: int) -> State:
        """A trajectory of every chain more."""
        state, info, walk = step(self.field, state, jittered(TRAJECTORY / steps), steps)
        self.steps.append(steps)
        for seen, value in ((self.acceptance, info.acceptance), (self.walls, walk.walls), (self.lost, walk.lost)):
            seen.append(float(value.double().mean()))
        return state

    @property
    def wall_cost(self) -> float:
        """Of a trajectory's walls, in forces."""
        return (WALL if self.field.late else WALL + FULL) * fmean(self.walls)

    @property
    def worth(self) -> float:
        """Effective draws a force, of trajectories with equally many steps."""
        (steps,) = set(self.steps)
        return float(effective(torch.tensor(fmean(self.acceptance))) / (steps + self.wall_cost))


def effective(acceptance: Tensor) -> Tensor:
    """Effective draws a draw, a / (2 − a): one that is accepted is a new one, so a chain's autocorrelation is 1 − a."""
    return acceptance / (2 - acceptance)


def trials(
    field: Field, state: State, iterations: int, betas: tuple[float, ...], progress: ProgressBar
) -> tuple[Field, State, int]:
    """β, then the number of steps, by effective draws a force. Costs are counted, not timed: one seed, one result."""
    sharp = [calibrated(sharpened(field, beta), state) for beta in betas]
    first = iterations // 4 if len(sharp) > 1 else 0
    best, state = contest([Trial(f) for f in sharp], place(sharp[0], state.w), first, progress)
    trial = Trial(best.field)  # afresh: the winner of a contest was lucky in it
    for t in progress("tuning", iterations - first):
        state = trial.run(state, STEPS[t % len(STEPS)])
    return trial.field, state, best_steps(trial, len(state.w)) if trial.steps else STEPS[0]


def contest(rivals: list[Trial], state: State, iterations: int, progress: ProgressBar = silent) -> tuple[Trial, State]:
    """The best of `rivals` and the state in its field, which begins in the first one's: turn by turn over all of them,
    of which the better half goes on when its share of the iterations is over (successive halving, Jamieson & Talwalkar
    2016). The last two are compared to the end: a trajectory's acceptance alone says little."""
    live, held, halvings = rivals, rivals[0].field, max(1, math.ceil(math.log2(len(rivals))))
    turns, begun = iter(live), 0
    for t in progress("tuning", iterations):
        trial = next(turns, None)
        if trial is None:
            if len(live) > 2 and (t - begun) * halvings >= iterations:
                live, begun = sorted(live, key=lambda trial: -trial.worth)[: math.ceil(len(live) / 2)], t
            turns = iter(live)
            trial = next(turns)
        if trial.field is not held:
            held, state = trial.field, place(trial.field, state.w)
        state = trial.run(state, STEPS[0])
    best = max((trial for trial in live if trial.steps), key=lambda trial: trial.worth, default=rivals[0])
    return best, state if best.field is held else place(best.field, state.w)


def best_steps(trial: Trial, chains: int) -> int:
    """The number of steps n, between the fewest and the most of STEPS, that promises most effective draws a force.

    In many dimensions energy errors are nearly N(μ, 2μ), so a trajectory is accepted with a = erfc(√μ / 2) (Neal 2011,
    §5.4.4), or not at all if it is lost, as a share of them is at any n. Take μ = μ₁₆ (n / 16)^−γ: γ is 4 where V is
    smooth, less where kinks are stepped over, 0 where only what V leaves out remains. Every trial then tells of every
    n, where on its own it would say next to nothing. Worth is averaged over log μ₁₆, uniform on [−5, 4], and γ, uniform
    on [0, 4]; trajectories of all chains and turns are taken for independent, their acceptances for those of coins,
    which spread more.
    """
    steps, acceptance = (torch.tensor(v, dtype=torch.float64) for v in (trial.steps, trial.acceptance))
    axes = torch.linspace(-5, 4, 46).double(), torch.linspace(0, 4, 21).double()
    log_mu, gamma = torch.meshgrid(*axes, indexing="ij")

    def accepted(n: Tensor) -> Tensor:
        log_here = log_mu[..., None] - gamma[..., None] * (n / STEPS[0]).log()
        return (1 - fmean(trial.lost)) * torch.erfc((log_here / 2).exp() / 2)

    a = accepted(steps).clamp(1e-6, 1 - 1e-6)
    weight = (acceptance * a.log() + (1 - acceptance) * (-a).log1p()).sum(-1) * chains
    weight = weight.flatten().softmax(0).reshape(log_mu.shape)
    n = torch.arange(min(STEPS), max(STEPS) + 1).double()
    worth = (weight[..., None] * effective(accepted(n))).sum((0, 1)) / (n + trial.wall_cost)
    return int(n[worth.argmax()])
