"""What an attack will take, before it begins: memory, held against what there is, and time.

A step of the search, one log-density of all starts and its gradient, takes

    bytes(starts) = bytes(1) + (starts − 1) (bytes(2) − bytes(1))

The bytes of one and of two starts are counted, operation by operation. Only where all of them fit into the memory is a
step of all starts run, and timed. How long a sampler goes on after its search is not known before its warm-up has
ended; the bar tells it then, and corrects all that is told here.
"""

from __future__ import annotations

import inspect
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pplleak import memory, programs
from pplleak.density import Density, build
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.studies.attack.attack import believe

SETTINGS = ("starts", "steps")  # of the inferences that begin with a search


@dataclass(frozen=True)
class Forecast:
    """Of a search with so many starts and steps: seconds a step, the peak of its bytes, and the bytes that are free."""

    starts: int
    steps: int
    seconds: float
    bytes: float
    free: int

    def __str__(self) -> str:
        said = f"search: {self.starts} starts, {self.steps} steps of {1000 * self.seconds:.3g} ms, about "
        room = f"; {self.bytes / memory.GIB:.2g} GiB of memory"
        return said + _spoken(self.seconds * self.steps) + (room if self.bytes >= memory.GIB / 100 else "")


def forecast(observed: Observation, model: str, inference: str, beliefs: Mapping[str, Any],
             settings: Mapping[str, Any]) -> Forecast | None:  # fmt: skip
    """What the search of an attack takes; None where the inference has none, or the model cannot be evaluated before
    its attack has begun. The generators of random numbers are where they were.

    Raises:
        BadInput: a step takes more memory than there is.
    """
    own = inspect.signature(programs.load("inference", inference)).parameters
    preset = {n: p.default for n, p in own.items()} | programs.preferred(model, inference) | dict(settings)
    starts, steps = (preset.get(name) for name in SETTINGS)
    if not (isinstance(starts, int) and isinstance(steps, int) and starts > 0 and steps > 0):
        return None
    device = observed.client.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            density = build(believe(programs.load("models", model), observed, beliefs), observed.client, observed)
            one = density.sample_prior(1)
            step(density, one)()  # some constants are made once, and kept
            first, second = (peak(step(density, one.expand(k, -1))) for k in (1, 2))
        except (BadInput, RuntimeError, NotImplementedError):  # which the attack itself will tell
            return None
        needed = first + (starts - 1) * max(second - first, 0)
        memory.require(needed, f"a step of {starts} starts", "take fewer starts, a smaller batch or a smaller network")
        evaluate = step(density, one.repeat(starts, 1))
        evaluate()
        began = time.perf_counter()
        evaluate()
        return Forecast(starts, steps, time.perf_counter() - began, needed, memory.available())


def step(density: Density, z: Tensor) -> Callable[[], None]:
    def evaluate() -> None:
        value, gradient = density.value_and_grad(z)
        float(value[0] + gradient[0, 0])  # an accelerator has done it, too

    return evaluate


def peak(work: Callable[[], None]) -> int:
    """The most bytes that the tensors which some work makes take at one time."""
    with Counted() as counted:
        work()
    return counted.most


class Counted(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for t in tree_leaves(made):
            if isinstance(t, Tensor):
                self._count(t.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name in self.known:
            return
        self.known.add(name)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, name, size)

    def _freed(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size


def _spoken(seconds: float) -> str:
    """A span of time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
