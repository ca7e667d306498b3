"""What warm-up finds out about a field of walls and gates: how sharp the gates, how many steps, how cheap the jumps.

Candidates are judged by trajectories that are run anyway: effective draws, a / (2 − a) a draw at acceptance a, for
their cost in forces. Costs are counted, not timed: one seed, one result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from pplleak.density.kinks.billiard import State, place, step
from pplleak.density.kinks.gates import gated
from pplleak.density.kinks.walls import Field, beyond, next_wall, turned
from pplleak.density.step_size import TRAJECTORY, jittered
from pplleak.progress import ProgressBar, silent

SHARPNESS = (200.0, 100.0, 400.0, 800.0)  # β that are tried, the first one while the chains cool
STEPS = (8, 12, 6, 16, 4, 24)  # leapfrog steps of a trajectory that are tried
WALL = 1.0  # what a wall costs, in forces
VAGUE = 0.4  # nats by which a ΔV without the first layers may be off; an error of a trajectory adds up over some walls


def sharpened(field: Field, beta: float) -> Field:
    """The same field with gates of another sharpness."""
    gates = gated(field.exact.client, beta)
    return replace(field, soft=replace(field.soft, client=gates.client), gates=gates, late=None)


@torch.no_grad()
def calibrated(field: Field, state: State, rounds: int = 12, span: float = 0.4) -> Field:
    """The field with ΔV from the layers behind the first wall alone, the rest taken for its mean at every unit; or as
    it is, where that rest is not about constant.

    Walls are met as trajectories meet them: the first ones on random arcs from where the chains are.
    """
    full = replace(field, late=None)
    if field.gates.late is None:
        return full
    density = replace(field.soft, client=field.gates.late)
    rest = torch.zeros(state.h.shape[1], dtype=torch.float64, device=state.w.device)
    cheap, units, gaps = replace(field, late=(density, rest)), [], []
    for _ in range(rounds):
        p, time = torch.randn_like(state.w), torch.full_like(state.w[:, 0], span)
        h_end = field.walls(turned(state.w, p, time)[0])
        hit = beyond(h_end, state.pattern).any(1)
        if not bool(hit.any()):
            continue
        w, p, pattern = state.w[hit], p[hit], state.pattern[hit]
        t, unit, _, failed = next_wall(field, w, p, time[hit], pattern, state.h[hit], h_end[hit])
        w, sign = turned(w, p, t)[0], 1 - 2 * pattern.gather(1, unit[:, None])[:, 0].double()
        gap = sign * (full.jump(w, pattern, unit, 1.0) - cheap.jump(w, pattern, unit, 1.0))
        units.append(unit[~failed])
        gaps.append(gap[~failed])
    if not units:
        return full
    unit, gap = torch.cat(units), torch.cat(gaps)
    count, total = torch.zeros_like(rest).index_add(0, unit, torch.ones_like(gap)), rest.index_add(0, unit, gap)
    others = (total[unit] - gap) / count[unit]  # a gap is judged by the mean of the others, drawn a little to zero
    if not float((gap - others).square().mean().sqrt()) < VAGUE:
        return full
    return replace(cheap, late=(density, total / (count + 1)))


@dataclass
class Trial:
    """A candidate, and what its trajectories gave: their number, Σ acceptance, Σ cost of a chain in forces."""

    field: Field
    steps: int
    count: int = 0
    accepted: float = 0.0
    cost: float = 0.0

    @property
    def worth(self) -> float:
        """Effective draws a force; a draw that is accepted is a new one, so a chain's autocorrelation is 1 − a."""
        a = self.accepted / self.count
        return a / (2 - a) * self.count / self.cost


def trials(
    field: Field, state: State, iterations: int, betas: tuple[float, ...], progress: ProgressBar
) -> tuple[Field, State, int]:
    """β, then the number of steps, by effective draws a force. Costs are counted, not timed: one seed, one result."""
    sharp = [calibrated(sharpened(field, beta), state) for beta in betas]
    first = iterations // 3 if len(sharp) > 1 else 0
    best, state = contest([Trial(f, STEPS[0]) for f in sharp], place(sharp[0], state.w), first, progress)
    best, state = contest([Trial(best.field, n) for n in STEPS], state, iterations - first, progress)
    return best.field, state, best.steps


def contest(rivals: list[Trial], state: State, iterations: int, progress: ProgressBar = silent) -> tuple[Trial, State]:
    """The best of `rivals` and the state in its field, which begins in the first one's: rounds over all of them, of
    which the better half goes on."""
    live, queue, held = rivals, list(rivals), rivals[0].field
    for _ in progress("tuning", iterations):
        if not queue:
            live = sorted(live, key=lambda trial: -trial.worth)[: math.ceil(len(live) / 2)]
            queue = list(live)
        trial = queue.pop(0)
        if trial.field is not held:
            held, state = trial.field, place(trial.field, state.w)
        state, info, walk = step(held, state, jittered(TRAJECTORY / trial.steps), trial.steps)
        trial.count += 1
        trial.accepted += float(info.acceptance.mean())
        trial.cost += trial.steps + WALL * float(walk.walls.double().mean())
    best = max((trial for trial in live if trial.count), key=lambda trial: trial.worth, default=rivals[0])
    return best, state if best.field is held else place(best.field, state.w)
