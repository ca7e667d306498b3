"""What an attack will take, before it begins: a step of its search is run, its memory counted, its time taken.

A step is one log-density of all starts and its gradient, in parts that fit into the memory (`Density.in_parts`). How
long a sampler goes on after its search is not known before its warm-up has ended; the bar tells it then, and corrects
all that is told here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pplleak import memory, programs
from pplleak.density import build, footprint
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.studies.attack.attack import believe

SETTINGS = ("starts", "steps")  # of the inferences that begin with a search


@dataclass(frozen=True)
class Forecast:
    """Of a search with so many starts and steps: seconds a step, and the peak of its bytes."""

    starts: int
    steps: int
    seconds: float
    bytes: float

    def __str__(self) -> str:
        said = f"search: {self.starts} starts, {self.steps} steps of {1000 * self.seconds:.3g} ms, about "
        room = f"; {self.bytes / memory.GIB:.2g} GiB of memory"
        return said + _spoken(self.seconds * self.steps) + (room if self.bytes >= memory.GIB / 100 else "")


def forecast(observed: Observation, model: str, inference: str, beliefs: Mapping[str, Any],
             settings: Mapping[str, Any]) -> Forecast | None:  # fmt: skip
    """What the search of an attack takes; None where the inference has none, or the model cannot be evaluated before
    its attack has begun. The generators of random numbers are where they were.
    """
    preset = programs.defaults(inference) | programs.preferred(model, inference) | dict(settings)
    starts, steps = (preset.get(name) for name in SETTINGS)
    if not (isinstance(starts, int) and isinstance(steps, int) and starts > 0 and steps > 0):
        return None
    device = observed.client.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            density = build(believe(programs.load("models", model), observed, beliefs), observed.client, observed)
            z, evaluate = density.sample_prior(starts), density.in_parts(starts)
            taken = footprint.peak(lambda: evaluate(z))
        except (BadInput, RuntimeError):  # which the attack itself will tell
            return None
        began = time.perf_counter()
        float(evaluate(z)[0][0])  # an accelerator has done it, too
        return Forecast(starts, steps, time.perf_counter() - began, taken)


def _spoken(seconds: float) -> str:
    """A span of time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
