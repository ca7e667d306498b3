"""What a trajectory asks for at every step and wall, for a few chains at a time, as lists of tensor operations.

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

# tensors (rows, …), then the exponent of the likelihood () float64, if it has one -> tensors (rows, …)
Function = Callable[..., tuple[Tensor, ...]]


FEW = 8  # rows for which replaying saves time on a processor
OFTEN = 50  # times that a number of rows is asked for before it is recorded


@dataclass(frozen=True, eq=False)
class Recordings:
    """`plain`, recorded for the numbers of rows that are asked for again and again.

    An accelerator is kept waiting by Python at any number of rows: there it is filled up to a power of two, so that few
    are recorded. asked: rows -> how often. kept: rows -> the recording, or `plain` where that is impossible.
    """

    plain: Function
    asked: Counter[int] = field(default_factory=Counter)
    kept: dict[int, Function] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, *rows: Tensor, power: float | None = None) -> tuple[Tensor, ...]:
        rows, count, device = tuple(t.detach() for t in rows), len(rows[0]), rows[0].device
        exponent = () if power is None else (torch.tensor(power, dtype=torch.float64, device=device),)
        accelerated = device.type != "cpu"
        if count == 0 or (count > FEW and not accelerated):
            return self.plain(*rows, *exponent)
        if accelerated:
            more = torch.arange(1 << (count - 1).bit_length(), device=device).clamp(max=count - 1)
            rows = tuple(t[more] for t in rows)
        size = len(rows[0])
        self.asked[size] += 1
        if size not in self.kept and self.asked[size] >= OFTEN:
            self.kept[size] = self._recorded(*rows, *exponent)
        return tuple(t[:count] for t in self.kept.get(size, self.plain)(*rows, *exponent))

    def _recorded(self, *given: Tensor) -> Function:
        if self.plain in self.kept.values():
            return self.plain
        try:
            with pyro.validation_enabled(False):
                return graphs.recorded(self.plain, given)
        except UNRECORDABLE as error:
            return unrecorded(self.plain, error)
