"""The file that only the auditor keeps: the private batch behind an observation, by which its attack is scored.

safetensors: ``x`` (N, *input_shape) in the range that pixels have, ``y`` (N,), and in the metadata which of the N
examples each step took. No attack reads it, but for the score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pplleak import reading, runs, tensors
from pplleak.errors import BadInput, printable

FORMAT = "pplleak-private-1"


@dataclass(frozen=True, eq=False)
class Private:
    """x (N, *input_shape) and y (N,), in the order in which the client first saw them; steps: the examples of each."""

    x: Tensor
    y: Tensor
    steps: list[list[int]]

    @property
    def in_order(self) -> bool:
        """Whether every epoch took the examples in the same order, as `pplleak.client.training` does."""
        flat, n = [k for step in self.steps for k in step], len(self.y)
        return all(k == j % n for j, k in enumerate(flat))


@dataclass(frozen=True)
class _Metadata:
    format: str
    steps: list[list[int]]


def write(path: str | Path, x: Tensor, y: Tensor, steps: Sequence[Sequence[int]]) -> None:
    """Write the private batch; arguments as of `Private`."""
    said = {"format": FORMAT, "steps": [list(s) for s in steps]}
    runs.tensors(path, {"x": x, "y": y}, {k: json.dumps(v) for k, v in said.items()})


def read(path: str | Path) -> Private:
    """Read what `write` wrote.

    Raises:
        BadInput: it is no such file.
    """
    held, raw = tensors.read(path)
    where = printable(path)
    if raw.get("format") != json.dumps(FORMAT) or set(held) != {"x", "y"}:
        raise BadInput(f"{where} is no private batch that pplleak recorded: name the folder of those")
    x, y = held["x"], held["y"]
    if not x.is_floating_point() or y.is_floating_point() or y.dim() != 1 or x.dim() < 2 or len(x) != len(y):
        raise BadInput(f"{where}: its inputs {tuple(x.shape)} and labels {tuple(y.shape)} are no batch")
    steps = reading.metadata(raw, _Metadata, f"{where}: its metadata").steps
    if any(not 0 <= k < len(y) for step in steps for k in step):
        raise BadInput(f"{where}: its steps name examples that it does not hold")
    return Private(x, y.long(), steps)
