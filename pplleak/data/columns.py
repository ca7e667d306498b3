"""The columns of a table, and the map from its records to what a network takes.

A record has a cell in every column. The *record* is what is private, and what an adversary infers; a network takes its
*encoding* x, which is a part of the client:

    categorical   one of its categories          one entry each, 1 for the category and 0 for the others
    grid          one of finitely many numbers   (value − mean) / sd
    number        a real number                  (value − mean) / sd
    constant      the same in all rows           no entry: there is nothing to learn

mean and sd are those of the public rows. A missing cell is a category of its own; of a column of numbers it is the
entry 0, and 1 in a further entry that says so. So a record is *codes*, which state each column of finitely many states
is in (a number's are that it is there and that it is missing), and *numbers*, standardised, of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from pplleak import reading

Kind = Literal["categorical", "grid", "number", "constant"]
MISSING = "missing"
TOLERANCE = 0.1  # of a column's range: so near, a number counts as read


@dataclass(frozen=True)
class Column:
    """One column, as the whole file (its categories, its grid) and its public rows (mean, sd) say it.

    values    categories, the numbers of a grid in growing order, or the one value of a constant; () of a number
    missing   some cells of it are empty
    whole     its numbers are whole numbers
    low, high its range over the public rows
    """

    name: str
    kind: Kind
    values: tuple[str | float, ...] = ()
    missing: bool = False
    whole: bool = False
    mean: float = 0.0
    sd: float = 1.0
    low: float = 0.0
    high: float = 0.0

    @property
    def states(self) -> int:
        """How many states it has, that a cell is missing among them; 0 where they are not finitely many."""
        if self.kind == "constant":
            return 0
        return (2 if self.missing else 0) if self.kind == "number" else len(self.values) + self.missing

    @property
    def width(self) -> int:
        """Entries of its encoding."""
        if self.kind == "constant":
            return 0
        return self.states if self.kind == "categorical" else 1 + self.missing

    @property
    def numeric(self) -> bool:
        return self.kind in ("grid", "number")

    @property
    def tolerance(self) -> float:
        """How near an estimate must be to count as right: a tenth of the range; 0 of a category."""
        return TOLERANCE * (self.high - self.low) if self.numeric else 0.0

    def rows(self) -> Tensor:
        """The encoding of each of its states, (states, width), float64; of a number that is there, zeros."""
        made = torch.zeros(self.states, self.width, dtype=torch.float64)
        if self.kind == "categorical":
            return torch.eye(self.states, dtype=torch.float64)
        if self.kind == "grid":
            made[: len(self.values), 0] = (torch.tensor(self.values, dtype=torch.float64) - self.mean) / self.sd
        if self.missing and self.states:
            made[-1, 1] = 1.0
        return made

    def words(self, value: float) -> str:
        """A cell of a record (`Columns.record`) in words."""
        if value != value:
            return MISSING
        if self.kind == "categorical":
            return MISSING if int(value) == len(self.values) else str(self.values[int(value)])
        if self.whole:
            return f"{value:.0f}"
        return f"{float(f'{value:.4g}'):.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"  # 23770, not 2.377e+04


@dataclass(frozen=True)
class Columns:
    """All columns of a table but its label. They are compared by what they say, and hashed by it."""

    columns: tuple[Column, ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.columns)

    @cached_property
    def varying(self) -> tuple[Column, ...]:
        """Those that a record has a cell in: all but the constant ones."""
        return tuple(c for c in self.columns if c.kind != "constant")

    @cached_property
    def finite(self) -> tuple[Column, ...]:
        """Those with a code."""
        return tuple(c for c in self.varying if c.states)

    @cached_property
    def real(self) -> tuple[Column, ...]:
        """Those with a number."""
        return tuple(c for c in self.varying if c.kind == "number")

    @property
    def sizes(self) -> tuple[int, ...]:
        """States of every column with a code."""
        return tuple(c.states for c in self.finite)

    @cached_property
    def width(self) -> int:
        """Entries of the encoding of a record."""
        return sum(c.width for c in self.varying)

    @cached_property
    def starts(self) -> dict[str, int]:
        """Where the encoding of each column begins."""
        made, at = {}, 0
        for column in self.varying:
            made[column.name] = at
            at += column.width
        return made

    @cached_property
    def offsets(self) -> Tensor:
        """Where the states of each column with a code begin in `rows`, (F,)."""
        return torch.tensor([0, *self.sizes[:-1]]).cumsum(0) if self.finite else torch.zeros(0, dtype=torch.long)

    @cached_property
    def rows(self) -> Tensor:
        """What each state of each column adds to the encoding, (Σ states, width), float64."""
        made = torch.zeros(sum(self.sizes), self.width, dtype=torch.float64)
        at = 0
        for column in self.finite:
            start = self.starts[column.name]
            made[at : at + column.states, start : start + column.width] = column.rows()
            at += column.states
        return made

    @cached_property
    def places(self) -> Tensor:
        """The entry of each number, (R,)."""
        return torch.tensor([self.starts[c.name] for c in self.real], dtype=torch.long)

    @cached_property
    def _presence(self) -> Tensor:
        """The code that says whether each number is there, (R,); −1 where it always is."""
        names = [c.name for c in self.finite]
        return torch.tensor([names.index(c.name) if c.missing else -1 for c in self.real], dtype=torch.long)

    def present(self, codes: Tensor) -> Tensor:
        """Which numbers are there, (…, R), 0 or 1, of codes (…, F)."""
        if not self.finite or bool((self._presence < 0).all()):
            return torch.ones(*codes.shape[:-1], len(self.real), dtype=torch.bool, device=codes.device)
        there = codes[..., self._presence.clamp(min=0)] == 0
        return there | (self._presence < 0).to(codes.device)

    def encode(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """codes (…, F) and numbers (…, R), standardised -> x (…, width), in the precision of the numbers."""
        rows = self.rows.to(numbers)
        x = rows[codes + self.offsets.to(codes.device)].sum(-2)
        if not self.real:
            return x
        placed = torch.zeros(*numbers.shape[:-1], self.width, dtype=numbers.dtype, device=numbers.device)
        placed = placed.index_add(-1, self.places.to(numbers.device), numbers * self.present(codes))
        return x + placed

    def decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (…, width), a record's encoding or something like it -> the nearest codes and numbers: the largest entry of
        a category, the nearest value of a grid."""
        codes = [self._state(column, x[..., self.starts[column.name] :][..., : column.width]) for column in self.finite]
        lead = x.shape[:-1]
        made = torch.stack(codes, -1) if codes else torch.zeros(*lead, 0, dtype=torch.long, device=x.device)
        return made, x[..., self.places.to(x.device)]

    @staticmethod
    def _state(column: Column, x: Tensor) -> Tensor:
        if column.kind == "categorical":
            return x.argmax(-1)
        missing = x[..., 1] > 0.5 if column.missing else torch.zeros_like(x[..., 0], dtype=torch.bool)
        if column.kind == "number":
            return missing.long()
        grid = column.rows()[: len(column.values), 0].to(x)
        nearest = torch.bucketize(x[..., 0].contiguous(), (grid[1:] + grid[:-1]) / 2)
        return torch.where(missing, len(column.values), nearest)

    def record(self, x: Tensor) -> Tensor:
        """x (…, width) -> cells (…, C), float64, in the order of `varying`: a category by its place among the column's,
        numbers on their own scale and grid, NaN for a missing one."""
        codes, numbers = self.decode(x.double())
        there = self.present(codes)
        cells, finite, real = [], 0, 0
        for column in self.varying:
            if column.kind == "number":
                value = numbers[..., real] * column.sd + column.mean
                value = value.round() if column.whole else value
                cells.append(torch.where(there[..., real], value, torch.nan))
                real += 1
            elif column.kind == "grid":
                values = torch.tensor([*column.values, torch.nan], dtype=torch.float64, device=x.device)
                cells.append(values[codes[..., finite]])
            else:
                cells.append(codes[..., finite].double())
            finite += column.states > 0
        return torch.stack(cells, -1)

    def to_json(self) -> list[dict[str, Any]]:
        return [{**asdict(c), "values": list(c.values)} for c in self.columns]

    @classmethod
    def from_json(cls, kept: Iterable[Mapping[str, Any]]) -> Columns:
        """What `to_json` wrote; raises BadInput for anything else."""
        return cls(tuple(reading.typed(list(kept), list[Column], "the columns of the table")))
