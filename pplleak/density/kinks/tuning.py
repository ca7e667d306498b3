"""What warm-up finds out about a field of walls and gates: how sharp the gates, and how many steps.

Candidates are judged by trajectories that are run anyway: effective draws, a / (2 − a) a draw at acceptance a, for
their cost in forces. Costs are counted, not timed: one seed, one result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pplleak.density.kinks.billiard import State, place, step
from pplleak.density.kinks.gates import gated
from pplleak.density.kinks.walls import Field
from pplleak.density.step_size import TRAJECTORY, jittered
from pplleak.progress import ProgressBar, silent

# β that are tried, the first one while the chains cool. What a draw is worth is flat in β: factors of two apart, the
# luck of a few trajectories decides, and costs more than the best one gains.
SHARPNESS = (200.0, 50.0, 800.0)
STEPS = (12, 8, 16, 24)  # leapfrog steps of a trajectory that are tried
WALL = 1.7  # what a wall costs in forces: its search there and back, its normal and ΔV


def sharpened(field: Field, beta: float) -> Field:
    """The same field with gates of another sharpness."""
    gates = gated(field.exact.client, beta)
    return replace(field, soft=replace(field.soft, client=gates.client), gates=gates)


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
    sharp = [sharpened(field, beta) for beta in betas]
    first = iterations // 4 if len(sharp) > 1 else 0
    best, state = contest([Trial(f, STEPS[0]) for f in sharp], place(sharp[0], state.w), first, progress)
    best, state = contest([Trial(best.field, n) for n in STEPS], state, iterations - first, progress)
    return best.field, state, best.steps


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
        state, info, walk = step(held, state, jittered(TRAJECTORY / trial.steps), trial.steps)
        trial.count += 1
        trial.accepted += float(info.acceptance.mean())
        trial.cost += trial.steps + WALL * float(walk.walls.double().mean())
    best = max((trial for trial in live if trial.count), key=lambda trial: trial.worth, default=rivals[0])
    return best, state if best.field is held else place(best.field, state.w)
