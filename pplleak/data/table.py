"""Tables: FILE.csv (.tsv, .data of UCI without a header) or FILE.parquet, one column of which is the label.

The kind of every column is inferred (`pplleak.data.columns`): words are categories; whole numbers within a span of
SPAN, and numbers that take few values, are a grid; others are real numbers. What cannot be had is refused, and why.

A fifth of the rows, drawn once and for all, is private, the rest public. Categories and grids are those of the whole
file, as of a table whose columns are documented; means, ranges and whatever a prior learns are of the public rows.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pplleak import memory, reading
from pplleak.data.columns import Column, Columns
from pplleak.data.images import Images
from pplleak.errors import BadInput, printable, unknown

if TYPE_CHECKING:
    import pandas as pd

BYTES = 1 << 30  # of one file
WIDEST = 10_000  # columns
CATEGORIES = 256  # of one column: more are names or words
CLASSES = 100
SPAN = 256  # whole numbers within it are a grid, whether each occurs or not
FEW = 128  # other numbers are a grid where they take no more values, a quarter of the rows at most
LEAST = 5  # rows
EMPTY = ["", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]
DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{2,4}|\d{4}/\d{1,2}/\d{1,2}")


def halves(path: Path, *, target: str = "", drop: tuple[str, ...] = ()) -> tuple[Images, Images]:
    """The private and the public rows of a file.

    Args:
        target: the column that is the label; "" is the last one.
        drop: columns to leave out.

    Raises:
        BadInput: it is no table of columns that can be told apart as above.
    """
    return _halves(path, target, tuple(drop), path.stat().st_mtime if path.is_file() else 0.0)


@lru_cache(maxsize=4)
def _halves(path: Path, target: str, drop: tuple[str, ...], changed: float) -> tuple[Images, Images]:
    frame = read(path)
    for name in drop:
        if name not in frame.columns:
            raise unknown("column", name, map(str, frame.columns))
    frame = frame.drop(columns=list(drop))
    return split(frame, target, _drawn(len(frame)), str(path))


def _drawn(rows: int) -> np.ndarray:
    """Which rows are private: a fifth, the same whenever a table has so many."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).numpy()
    return np.isin(np.arange(rows), order[: max(1, rows // 5)])


@lru_cache(maxsize=4)
def of_sklearn(loader: str) -> tuple[Images, Images]:
    """The private and the public rows of a table that scikit-learn has, by the name of its loader."""
    from sklearn import datasets  # slow to import

    frame = getattr(datasets, loader)(as_frame=True).frame.map(repr)
    return split(frame, "target", _drawn(len(frame)), loader)


def read(path: Path, names: Sequence[str] | None = None, skip: int = 0) -> pd.DataFrame:
    """A file's cells as words, missing ones as NaN.

    Args:
        names: of the columns, where the file has no header. skip: lines to pass over at its head.
    """
    import pandas as pd  # slow to import

    what = printable(path)
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    raw = reading.contents(path, BYTES)
    lines = raw[: 1 << 24].split(b"\n", skip + 1)
    first = lines[skip] if len(lines) > skip else b""
    separator = max(b",;\t|", key=lambda c: first.count(bytes([c])))
    if (count := first.count(bytes([separator])) + 1) > WIDEST:
        raise BadInput(f"{what} has {count} columns or more, and a table at most {WIDEST}: choose some")
    memory.require(20 * len(raw), f"{what}, {len(raw)} bytes,", "take fewer rows")
    bare = names is not None or path.suffix.lower() == ".data"
    try:
        frame = pd.read_csv(
            io.BytesIO(raw), sep=chr(separator), dtype=str, skipinitialspace=True, keep_default_na=False,
            na_values=EMPTY, header=None if bare else 0, skiprows=skip, names=list(names) if names else None,
            index_col=False,
        )  # fmt: skip
    except (ValueError, UnicodeError, pd.errors.ParserError, OverflowError) as error:  # EmptyDataError is a ValueError
        raise BadInput(f"{what} is no table of cells between '{chr(separator)}': {printable(error)}") from error
    if bare and names is None:
        frame.columns = [f"column {k + 1}" for k in range(frame.shape[1])]
    numbers = [str(c) for c in frame.columns if not bare and _is_number(str(c))]
    if numbers and len(numbers) * 2 > frame.shape[1]:
        raise BadInput(f"the first line of {what} holds numbers ({printable(numbers[0], 30)} for example), and should "
                       "name the columns: add such a line, or let the file's name end in .data")  # fmt: skip
    return frame


def _parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    reading.regular(path, BYTES)
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise BadInput(f"{printable(path)} needs a reader of Parquet: pip install pyarrow, or save a CSV") from error
    except Exception as error:  # a decoder raises what it likes on bytes that lie
        raise BadInput(f"{printable(path)} is no Parquet file: {printable(error)}") from error
    if frame.shape[1] > WIDEST:
        raise BadInput(f"{printable(path)} has {frame.shape[1]} columns, and a table at most {WIDEST}: choose some")
    words = frame.astype(str).where(frame.notna())
    return words.where(~words.isin(EMPTY))


def split(frame: pd.DataFrame, target: str, private: np.ndarray, what: str) -> tuple[Images, Images]:
    """The private and the public rows of a table of words.

    Args:
        target: the column that is the label; "" is the last one. private: which rows are, (N,). what: at the head of
            the messages.
    """
    if len(frame) < LEAST:
        raise BadInput(f"{printable(what)} has {len(frame)} rows, and a table needs {LEAST}: some are attacked, the "
                       "others are what the adversary knows")  # fmt: skip
    names = [str(c) for c in frame.columns]
    target = target or names[-1]
    if target not in names:
        raise unknown("column", target, names, "It was to be the label.")
    if len(names) < 2:
        raise BadInput(f"{printable(what)} has one column, and a table needs two: cells to infer, and a label")
    y, classes = _labels(frame[target], target, what)
    cells = {n: frame[c] for n, c in zip(names, frame.columns, strict=True) if n != target}
    found = [_column(n, values, ~private, what) for n, values in cells.items()]
    columns = Columns(tuple(column for column, _ in found))
    if not columns.varying:
        raise BadInput(f"every column of {printable(what)} but '{printable(target, 40)}' is the same in all rows: "
                       "there is nothing to infer")  # fmt: skip
    memory.require(8 * len(frame) * columns.width, f"{printable(what)}, encoded,", "take fewer rows or columns")
    codes = [_codes(c, values) for c, values in found if c.states]
    numbers = [(np.nan_to_num(values, nan=c.mean) - c.mean) / c.sd for c, values in found if c.kind == "number"]
    x = columns.encode(
        torch.from_numpy(np.stack(codes, 1)) if codes else torch.zeros(len(frame), 0, dtype=torch.long),
        torch.from_numpy(np.stack(numbers, 1)) if numbers else torch.zeros(len(frame), 0, dtype=torch.float64),
    ).float()
    made = [Images(x[k], y[k], classes, columns) for k in (torch.from_numpy(private), torch.from_numpy(~private))]
    return made[0], made[1]


def _labels(cells: Any, name: str, what: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    said = f"the label '{printable(name, 40)}' of {printable(what)}"
    if bool(cells.isna().any()):
        raise BadInput(f"{said} is missing in {int(cells.isna().sum())} rows: fill them in, or leave them out")
    classes = sorted(set(cells), key=lambda c: (0, float(c), c) if _is_number(c) else (1, 0.0, c))
    if not 2 <= len(classes) <= CLASSES:
        raise BadInput(f"{said} has {len(classes)} values, and a label 2 to {CLASSES}: name another column as target")
    places = {c: k for k, c in enumerate(classes)}
    return torch.tensor([places[c] for c in cells]), tuple(classes)


def _column(name: str, cells: Any, public: np.ndarray, what: str) -> tuple[Column, np.ndarray]:
    """A column's kind, and its cells: numbers, or categories' names, with NaN or None where they are missing."""
    said = f"the column '{printable(name, 40)}' of {printable(what)}"
    there = cells.notna().to_numpy()
    words = cells[there].str.strip()
    missing, distinct = not bool(there.all()), sorted(set(words))
    if len(distinct) < 1 or (len(distinct) == 1 and not missing):
        return Column(name, "constant", tuple(distinct)), cells.to_numpy()
    if all(DATE.match(w) for w in distinct):
        raise BadInput(f"{said} holds dates ('{printable(distinct[0], 30)}'): turn them into numbers, of days for "
                       "example, or leave the column out")  # fmt: skip
    numeric = [w for w in distinct if _is_number(w)]
    if numeric and len(numeric) < len(distinct):
        strange = next(w for w in distinct if not _is_number(w))
        if 2 * len(numeric) > len(distinct):
            raise BadInput(f"{said} mixes numbers and words ('{printable(strange, 30)}' among numbers): make it one or "
                           "the other, or leave the column out")  # fmt: skip
    if len(numeric) < len(distinct):
        if len(distinct) > CATEGORIES:
            raise BadInput(f"{said} has {len(distinct)} categories, more than {CATEGORIES}: names, or text? Leave the "
                           "column out, or join some")  # fmt: skip
        return Column(name, "categorical", tuple(distinct), missing), cells.str.strip().to_numpy()
    values = np.full(len(cells), np.nan)
    values[there] = words.astype(float).to_numpy()
    if not np.isfinite(values[there]).all() or np.abs(values[there]).max() > 1e15:
        raise BadInput(f"{said} holds infinity, or numbers beyond 1e15: scale it, or leave the column out")
    return _numeric(name, values, there, public), values


def _numeric(name: str, values: np.ndarray, there: np.ndarray, public: np.ndarray) -> Column:
    distinct = np.unique(values[there])
    whole = bool((distinct == distinct.round()).all())
    seen = values[there & public]
    seen = seen if len(seen) else distinct  # a column that is missing in all public rows
    spread, largest = float(seen.std()), max(1.0, float(np.abs(seen).max()))
    about: dict[str, Any] = {
        "missing": not bool(there.all()), "whole": whole, "mean": float(seen.mean()),
        "sd": spread if spread > 1e-12 * largest else largest,
        "low": float(seen.min()), "high": float(seen.max()),
    }  # fmt: skip
    if whole and distinct[-1] - distinct[0] < SPAN:
        grid = np.arange(distinct[0], distinct[-1] + 1)
    elif len(distinct) <= FEW and 4 * len(distinct) <= len(values):
        grid = distinct
    else:
        return Column(name, "number", **about)
    return Column(name, "grid", tuple(float(v) for v in grid), **about)


def _codes(column: Column, values: np.ndarray) -> np.ndarray:
    if column.kind == "number":
        return np.isnan(values).astype(np.int64)
    if column.kind == "grid":
        codes = np.searchsorted(np.array(column.values), np.nan_to_num(values, nan=float(column.values[0])))
        return np.where(np.isnan(values), len(column.values), codes).astype(np.int64)
    places = {c: k for k, c in enumerate(column.values)}
    return np.array([places.get(v, len(places)) for v in values], dtype=np.int64)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word  # Python's own spelling of large numbers
