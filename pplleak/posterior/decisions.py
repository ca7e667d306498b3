"""Decisions from posterior draws: one reconstruction, for one loss, and the loss that the posterior expects of it.

    mean     argmin over x̂ of E‖x − x̂‖²
    medoid   argmin over the draws x̂ of E‖x − x̂‖
    mode     the highest density that the inference found
    ball     argmax over x̂ of P(‖x − x̂‖ ≤ δ), the Bayes-optimal adversary of Balunović et al. 2022, section 4

with expectations under p(x | g) and ‖·‖ the L2 norm over the pixels of one example. A decision is made on some of the
draws and its loss estimated on others: the ball that holds most of the draws it was chosen by is flattered by them.
Draws have shape (N, batch, *input_shape), in the order of `Posterior.draws`: chain after chain, so that the parts
hold different chains where there are four or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pplleak.errors import BadInput, require_positive

NAMES = ("mean", "medoid", "mode", "ball")


@dataclass(frozen=True, eq=False)
class Parts:
    """Draws by what they are for: a half proposes candidates, a quarter chooses, the last quarter scores."""

    propose: np.ndarray
    choose: np.ndarray
    score: np.ndarray

    @property
    def fit(self) -> np.ndarray:
        """All that do not score."""
        return np.concatenate([self.propose, self.choose])

    @cached_property
    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and medoid of the draws that propose, the same for every δ."""
        return self.propose.mean(0), medoid(self.propose)


@dataclass(frozen=True, eq=False)
class Decision:
    """A reconstruction x (batch, *input_shape), and its expected losses under the posterior, each (batch,).

    square: E‖x − x̂‖², in squared pixel units. miss: P(‖x − x̂‖ > δ), the 0-1 loss of the ball.
    """

    name: str
    x: np.ndarray
    square: np.ndarray
    miss: np.ndarray


def split(draws: np.ndarray) -> Parts:
    """The first half, the third quarter and the last quarter of the draws."""
    count = len(draws)
    if count < 4:
        raise BadInput(
            f"a decision needs at least 4 posterior draws, not {count}: one inference draws more than a point"
        )
    return Parts(draws[: count // 2], draws[count // 2 : 3 * count // 4], draws[3 * count // 4 :])


def medoid(draws: np.ndarray) -> np.ndarray:
    """argmin over the draws x̂ of E‖x − x̂‖, for every example: its most central draw, over at most 1000 evenly spaced
    ones; (batch, *input_shape)."""
    thin = draws[:: -(-len(draws) // 1000)].astype(np.float64)
    return np.stack([_central(thin[:, b]) for b in range(draws.shape[1])])


def _central(draws: np.ndarray) -> np.ndarray:
    flat = draws.reshape(len(draws), -1)
    square = (flat**2).sum(1)
    distance = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * flat @ flat.T, 0)).sum(1)
    return draws[distance.argmin()]


def mean_shift(draws: np.ndarray, start: np.ndarray, delta: float, steps: int = 100) -> np.ndarray:
    """Move a centre (n,) to the mean of the draws (N, n) within δ of it until they stay the same (Cheng 1995, with the
    flat kernel). A centre without draws around it stays."""
    centre, before = start, None
    for _ in range(steps):
        inside = _square(draws, centre) <= delta**2
        if not inside.any() or (before is not None and np.array_equal(inside, before)):
            break
        centre, before = draws[inside].mean(0), inside
    return centre


def ball(parts: Parts, mode: np.ndarray, delta: float) -> np.ndarray:
    """The centre of the δ-ball that holds the most posterior mass, of every example; (batch, *input_shape).

    Mean shift starts from the mode, the mean and the medoid of the draws that propose; of the starts and the ends, the
    draws that choose take the one with the most of them inside. Where none has any, it is the mode: the limit δ → 0.
    """
    require_positive(delta=delta)
    starts = np.stack([mode, *parts.centres])

    def flat(a: np.ndarray, b: int) -> np.ndarray:
        return a[:, b].reshape(len(a), -1).astype(np.float64)

    centres = [_ball(flat(parts.propose, b), flat(parts.choose, b), flat(starts, b), delta) for b in range(len(mode))]
    return np.stack(centres).reshape(mode.shape)


def _ball(propose: np.ndarray, choose: np.ndarray, starts: np.ndarray, delta: float) -> np.ndarray:
    candidates = [*starts, *(mean_shift(propose, start, delta) for start in starts)]
    held = [np.mean(_square(choose, c) <= delta**2) for c in candidates]
    return candidates[int(np.argmax(held))]


def _square(draws: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return ((draws - centre) ** 2).sum(-1)


def decide(draws: np.ndarray, mode: np.ndarray, delta: float) -> dict[str, Decision]:
    """Every decision of `NAMES`, with its expected losses.

    Args:
        draws: (N, batch, *input_shape), N at least 4. mode: (batch, *input_shape). delta: L2 radius, in pixel units.
    """
    parts = split(draws)
    made = {"mean": parts.fit.mean(0), "medoid": medoid(parts.fit), "mode": mode, "ball": ball(parts, mode, delta)}
    scored = parts.score.reshape(*parts.score.shape[:2], -1).astype(np.float64)
    decisions = {}
    for name in NAMES:
        square = _square(scored, made[name].reshape(1, len(mode), -1))
        decisions[name] = Decision(name, made[name], square.mean(0), (square > delta**2).mean(0))
    return decisions
