"""Time as a budget: an attack that has used up its share is ended as Ctrl-C would end it, and keeps what it has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass


class OutOfTime(KeyboardInterrupt):
    """An attack's share of the budget is spent. Inferences keep what they have, as they do for Ctrl-C."""


@dataclass
class Clock:
    """A progress bar (`pplleak.progress`) that shows nothing and ends the work when its seconds are over."""

    seconds: float
    fired: bool = False

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds

    def __call__(self, label: str, total: int) -> Iterator[int]:
        for k in range(total):
            if time.monotonic() > self._end and not self.fired:  # once: what is to be kept must be able to finish
                self.fired = True
                raise OutOfTime
            yield k


def share(left: float, cost: float, coming: float) -> float:
    """Seconds for an attack out of those that are left, by its cost among those that are to come."""
    return max(0.0, left) * cost / max(coming, cost)
