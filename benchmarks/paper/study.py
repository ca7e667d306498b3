"""What the experiments have in common: jobs over images, kept row by row, tuned on images that are not scored.

A job attacks one image in one cell (a network, a defence, …) and gives a row an attack. Rows are added to a CSV as soon
as they are there. A run with the same CSV goes on where the last one stopped; Ctrl-C keeps every whole job.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from scipy.stats import qmc

from pplleak import data, runs
from pplleak.errors import BadInput, unknown
from pplleak.progress import bar

RESULTS = Path(__file__).resolve().parents[1] / "results"
SETTINGS = ("tv", "lr", "delta")  # columns of a tuning table that are settings of an attack
Row = dict[str, Any]
Job = tuple[Any, ...]


def command(main: Callable[[Any], bool], settings: type, doc: str | None) -> None:
    """Run a script as the command line does: bad input is one line and exit code 2, Ctrl-C one line and 130.

    Args:
        main: of the settings; True when all jobs are done, False where Ctrl-C ended them early, and it said so.
    """
    try:
        if not main(tyro.cli(settings, description=doc)):
            raise SystemExit(130)
    except BadInput as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted: finished jobs are kept, the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None


def require_known(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise BadInput for the first of some names that is not known."""
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)


def settle(args: Any, names: Sequence[str], **more: Any) -> None:
    """Keep in NAME.json what the rows of a CSV are made with: rows of other settings are not added to them.

    Args:
        args: a script's settings, a dataclass with `out` and `name`. names: its fields that decide what a row says.

    Raises:
        BadInput: the rows that are there were made otherwise.
    """
    said = {n: v for n, v in dataclasses.asdict(args).items() if n in names} | more
    runs.settle(args.out / f"{args.name}.json", runs.settings(said))


read = runs.read


def write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """A whole CSV, replaced."""
    runs.table(path, rows, columns, shown)


def shown(value: Any) -> str:
    """A cell of a CSV: four decimals, nothing for what is not there."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def run(
    label: str,
    jobs: Sequence[Job],
    work: Callable[[Job], list[Row]],
    path: Path,
    columns: Sequence[str],
    key: Sequence[str],
    workers: int = 1,
    stale: Callable[[Mapping[str, str]], bool] = lambda row: False,
) -> bool:
    """Do the jobs that the CSV does not hold; False where Ctrl-C ended them early.

    Args:
        jobs: tuples in the order of the columns `key`, which tell a job's rows from all others'.
        work: a module's function (or a partial of one) of a job, that gives its rows without the key.
        workers: processes of one thread each.
        stale: a row of the CSV whose job is done again; its rows stay until the new ones are there.

    Raises:
        BadInput: there are no workers.
    """
    table = runs.Rows(path, columns, key)
    rows = table.read()
    done = {table.about(row) for row in rows} - {table.about(row) for row in rows if stale(row)}
    todo = [job for job in jobs if tuple(map(str, job)) not in done]
    if workers == 1:
        torch.set_num_threads(1)
    try:
        with runs.workers(workers) as executor:
            made = runs.spread(functools.partial(_kept, work), todo, executor)
            for _ in bar(label, len(todo)):
                job, new = next(made)
                named = [{**dict(zip(key, job, strict=True)), **row} for row in new]
                table.add({n: shown(v) for n, v in row.items()} for row in named)
    except KeyboardInterrupt:
        print(f"interrupted: the finished jobs are in {path}; the same command goes on from there", file=sys.stderr)
        return False
    return True


def _kept(work: Callable[[Job], list[Row]], job: Job) -> tuple[Job, list[Row]]:
    """Work that says which job it was."""
    return job, work(job)


def images(spec: str, root: Path | None, count: int, tuning: int) -> tuple[list[int], list[int]]:
    """Indices of private images: those that are scored, and those that settings are tuned on, never the same.

    Both are in an order drawn once, so that a run of few images is the beginning of a run of many.

    Raises:
        BadInput: one of the two is asked to be empty.
    """
    if min(count, tuning) < 1:
        raise BadInput(f"--images and --tuning must be at least 1, not {count} and {tuning}")
    order = torch.randperm(len(data.private(spec, root)), generator=torch.Generator().manual_seed(0)).tolist()
    return order[tuning : tuning + count], order[:tuning]


def trials(space: Mapping[str, tuple[float, float]], count: int) -> list[dict[str, float]]:
    """Settings to try, spread evenly over the logarithm of their ranges (a Halton sequence; Halton 1960)."""
    points = qmc.Halton(len(space), scramble=False).random(count + 1)[1:]  # the first point is a corner
    return [
        {name: float(low * (high / low) ** p) for p, (name, (low, high)) in zip(point, space.items(), strict=True)}
        for point in points
    ]


def best(rows: Sequence[Mapping[str, str]], group: Sequence[str]) -> dict[tuple[str, ...], dict[str, float]]:
    """For each group of tuning rows, the settings of the trial with the highest mean PSNR, as the rows say them."""
    chosen = {
        g: max(grouped(mine, ("trial",)).values(), key=lambda tried: mean_se(float(r["psnr"]) for r in tried)[0])
        for g, mine in grouped(rows, group).items()
    }
    return {g: {n: float(r[0][n]) for n in SETTINGS if r[0][n]} for g, r in chosen.items()}


def mean_se(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error; NaN for one value."""
    v = np.array(list(values), dtype=np.float64)
    return float(v.mean()), float(v.std(ddof=1) / math.sqrt(len(v))) if len(v) > 1 else math.nan


def paired(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[float, float] | None:
    """Mean and standard error of one − other over the images that have both; None where there is none."""
    common = [i for i in one if i in other]
    return mean_se(one[i] - other[i] for i in common) if common else None


def by_image(rows: Iterable[Mapping[str, str]], column: str = "psnr") -> dict[str, float]:
    """Image index -> value."""
    return {row["index"]: float(row[column]) for row in rows if row[column] != ""}


def grouped(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> dict[Job, list[Mapping[str, str]]]:
    """Rows by what they say in some columns, in the order in which they come."""
    found: dict[Job, list[Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault(tuple(row[c] for c in columns), []).append(row)
    return found


def means(rows: Sequence[Mapping[str, str]], columns: Iterable[str]) -> Row:
    """The mean of each column over the images that have it; None where none has."""
    found = {column: by_image(rows, column).values() for column in columns}
    return {column: mean_se(values)[0] if values else None for column, values in found.items()}


def said(value: float, error: float | None, sign: bool = False) -> str:
    """A mean and its standard error, as the tables print them."""
    if not math.isfinite(value):
        return "–"
    spread = "" if error is None or not math.isfinite(error) else f" ± {error:.2f}"
    return (f"{value:+.2f}" if sign else f"{value:.2f}") + spread


def percent(value: float, error: float) -> str:
    """A share and its standard error."""
    return f"{value:.1%} ± {error:.1%}"
