"""V and ∇V as a list of tensor operations: what a trajectory asks for at every step, for a few chains at a time.

A few rows of a small network take less time than Python, Pyro and autograd around them. So the operations are recorded,
and replayed with the same numbers, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pyro
import torch
from torch import Tensor

from pplleak.density.recording import graphs
from pplleak.density.recording.tape import UNRECORDABLE, unrecorded

# w (rows, dim), pattern (rows, units) bool, exponent of the likelihood () float64 -> V (rows,), ∇V (rows, dim)
Force = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


FEW = 8  # rows for which replaying saves time on a processor
OFTEN = 20  # times that a number of rows is asked for before it is recorded


@dataclass(frozen=True, eq=False)
class Recordings:
    """`plain`, recorded for the numbers of rows that are asked for again and again.

    An accelerator is kept waiting by Python at any number of rows: there it is filled up to a power of two, so that few
    are recorded. asked: rows -> how often. kept: rows -> the recording, or `plain` where that is impossible.
    """

    plain: Force
    asked: Counter[int] = field(default_factory=Counter)
    kept: dict[int, Force] = field(default_factory=dict)

    def __call__(self, w: Tensor, pattern: Tensor, power: float) -> tuple[Tensor, Tensor]:
        w, count, accelerated = w.detach(), len(w), w.device.type != "cpu"
        exponent = torch.tensor(power, dtype=torch.float64, device=w.device)
        if count == 0 or (count > FEW and not accelerated):
            return self.plain(w, pattern, exponent)
        if accelerated:
            more = torch.arange(1 << (count - 1).bit_length(), device=w.device).clamp(max=count - 1)
            w, pattern = w[more], pattern[more]
        rows = len(w)
        self.asked[rows] += 1
        if rows not in self.kept and self.asked[rows] >= OFTEN:
            self.kept[rows] = self._recorded(w, pattern, exponent)
        with torch.no_grad():
            value, slope = self.kept.get(rows, self.plain)(w, pattern, exponent)
        return value[:count], slope[:count]

    def _recorded(self, *given: Tensor) -> Force:
        if self.plain in self.kept.values():
            return self.plain
        try:
            with pyro.validation_enabled(False):
                return graphs.recorded(self.plain, given)
        except UNRECORDABLE as error:
            return unrecorded(self.plain, error)
