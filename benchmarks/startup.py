"""How long the command line takes to start, as ratios to `import torch`, and how much memory.

    uv run benchmarks/startup.py [--write True]

Medians of several runs, each in a process of its own, all kinds in turns: on a busy machine the ratios stay fair. Peak
memory is the resident set's. Adds nothing where `--write` is not told; else writes benchmarks/results/startup.csv.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from pplleak import runs

OUT = Path(__file__).parent / "results" / "startup.csv"
COLUMNS = ("what", "seconds", "ratio", "goal", "peak_mb")
RUN = [sys.executable, "-m", "pplleak"]
KINDS: dict[str, tuple[list[str], float | None]] = {  # what is run, and the ratio that is aimed at
    "import torch": ([sys.executable, "-c", "import torch"], None),
    "import pplleak": ([sys.executable, "-c", "import pplleak"], 0.1),
    "pplleak --help": ([*RUN, "--help"], 0.25),
    "pplleak ls": ([*RUN, "ls"], 0.25),
    "pplleak attack --help": ([*RUN, "attack", "--help"], 1.3),
    "pplleak attack --wrong": ([*RUN, "attack", "--wrong"], 0.5),
    "a default attack, less its own seconds": ([*RUN, "attack"], 1.7),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    runs: int = 5
    """Of each kind; their medians are shown."""
    write: bool = False
    """Write benchmarks/results/startup.csv."""


def once(words: list[str], folder: str) -> tuple[float, float]:
    """Seconds on the clock, and the peak of the resident memory in MB, of one process."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.chdir(folder)
        os.execv(words[0], words)
    _, _, usage = os.wait4(child, 0)
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def own_seconds(folder: str) -> float:
    """What an attack says that it took."""
    import json

    return float(json.loads((Path(folder) / "attack" / "summary.json").read_text())["seconds"])


def main(settings: Settings) -> None:
    seconds: dict[str, list[float]] = {what: [] for what in KINDS}
    memory: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(settings.runs):
            for what, (words, _) in KINDS.items():
                took, peak = once(words, folder)
                took -= own_seconds(folder) if "own seconds" in what else 0
                seconds[what].append(took)
                memory[what] = max(memory[what], peak)
    medians = {what: statistics.median(each) for what, each in seconds.items()}
    table, rows = Table(*COLUMNS), []
    for what, (_, goal) in KINDS.items():
        ratio = medians[what] / medians["import torch"]
        row = (what, f"{medians[what]:.2f}", f"{ratio:.2f}", "" if goal is None else f"{goal}", f"{memory[what]:.0f}")
        rows.append(row)
        table.add_row(*row)
    Console().print(table)
    if settings.write:
        runs.Rows(OUT, COLUMNS, ("what",)).add([dict(zip(COLUMNS, row, strict=True)) for row in rows])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
