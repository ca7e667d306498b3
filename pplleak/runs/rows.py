"""Tables that grow row by row: a CSV that a run goes on from, and that a person can open."""

from __future__ import annotations

import csv
import io
import operator
import types
import typing
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplleak import reading
from pplleak.runs import files, locks
from pplleak.runs.going_on import readable

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """A growing table, kept in a CSV.

    path     the file; it holds whole rows whenever it is looked at
    columns  name -> int, float, bool or str, or one of them `| None`: an empty cell then reads as None. Names alone
             are columns of words
    key      the columns that tell what a row is about: adding rows replaces those that are about the same

    Floats are written so that they are read back bit for bit: a run that goes on holds the rows that it would have
    held, had it never been interrupted.
    """

    path: Path
    columns: Mapping[str, Any] | Sequence[str]
    key: Sequence[str]

    @property
    def names(self) -> list[str]:
        return list(self.columns)

    def about(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a row is about."""
        return tuple(row[name] for name in self.key)

    def read(self) -> list[Row]:
        """All rows; [] where there is no file.

        Raises:
            BadInput: the file is not such a table.
        """
        with readable(self.path):
            if not self.path.exists():
                return []
            lines = list(csv.reader(_lines(self.path), strict=True))
            if not lines or lines[0] != self.names:
                raise ValueError(f"it has other columns than {','.join(self.names)}")
            if short := [n for n, cells in enumerate(lines) if len(cells) != len(self.names)]:
                raise ValueError(f"row {short[0]} is not whole")
            kinds = self._kinds().items()
            return [{n: kind.value(c) for (n, kind), c in zip(kinds, cells, strict=True)} for cells in lines[1:]]

    def add(self, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
        """Put rows at the end of the table in one step, in the place of those with the same key, and give all rows.

        Nothing that another process has added meanwhile is lost. Columns that a row does not have are empty.

        Raises:
            BadInput: the file is not such a table, or cannot be written; it is then as it was.
        """
        kinds = self._kinds()
        fresh = []
        for row in rows:
            if unknown := sorted(set(row) - set(kinds)):
                raise KeyError(f"{self.path.name} has no column {unknown[0]}")
            fresh.append({n: kind.value(kind.cell(row.get(n))) for n, kind in kinds.items()})
        replaced = {self.about(row) for row in fresh}
        with locks.alone(self.path.parent):
            every = [row for row in self.read() if self.about(row) not in replaced] + fresh
            table(self.path, every, self.names)
        return every

    def remove(self, gone: Container[tuple[Any, ...]]) -> list[Row]:
        """Take the rows with these keys out of the table in one step, and give the others; raises as `add` does."""
        with locks.alone(self.path.parent):
            every = [row for row in self.read() if self.about(row) not in gone]
            table(self.path, every, self.names)
        return every

    def _kinds(self) -> dict[str, _Kind]:
        kinds = self.columns if isinstance(self.columns, Mapping) else dict.fromkeys(self.columns, str)
        return {name: _Kind.of(kind) for name, kind in kinds.items()}


@dataclass(frozen=True)
class _Kind:
    """How the values of a column are written and read: each is read back as it was."""

    plain: type
    optional: bool

    @staticmethod
    def of(kind: Any) -> _Kind:
        kinds = typing.get_args(kind) or (kind,)
        (plain,) = (k for k in kinds if k is not types.NoneType)
        return _Kind(plain, types.NoneType in kinds)

    def cell(self, value: Any) -> str:
        """Numbers of numpy and torch are written as Python's, which are read back the same."""
        if value is None:
            return ""
        if self.plain is float:
            return repr(float(value))
        return str(operator.index(value)) if self.plain is int else str(self.plain(value))

    def value(self, cell: str) -> Any:
        if self.optional and not cell:
            return None
        return {"True": True, "False": False}[cell] if self.plain is bool else self.plain(cell)


def read(path: str | Path) -> list[dict[str, str]]:
    """The cells of any CSV, as words; [] where there is no file.

    Raises:
        BadInput: it cannot be read as a CSV.
    """
    with readable(Path(path)):
        if not Path(path).exists():
            return []
        return list(csv.DictReader(_lines(path)))


def _lines(path: str | Path) -> io.StringIO:
    """A CSV's text, of a regular file that is not too large."""
    return io.StringIO(reading.contents(path).decode(), newline="")


def table(
    path: str | Path,
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    cell: Callable[[Any], Any] = lambda value: value,
) -> None:
    """A whole CSV, replaced in one step; columns that a row does not have are empty.

    Args:
        cell: how a value is shown; as it is, floats at full precision, where nothing else is asked for.
    """
    made = io.StringIO()
    writer = csv.DictWriter(made, list(columns), restval="")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    files.text(path, made.getvalue())
