"""Which numbers are the same bit for bit: the default attack with every inference, again, on two threads, on another chip.

    uv run benchmarks/reproducible.py

Two networks: a small one, which the commands compute on one thread whatever there are (fewer than 50,000 entries of the
update), and one that is spread over the threads. As on another chip: the same processor, told to leave its newer
instructions (AVX) alone in torch, MKL and oneDNN. A row each in benchmarks/results/reproducible.csv: whether posterior.nc
and summary.json are the same byte for byte as those of the first run on one thread (clocks stand still, `warm`), and if not, the largest difference
of a pixel's posterior mean, in units of its posterior sd.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import warm
from rich.console import Console
from warm import Event

from pplleak import markdown, programs, runs
from pplleak.posterior import Posterior

OUT = Path(__file__).parent / "results" / "reproducible.csv"
COLUMNS = {"network": str, "inference": str, "run": str, "exit_code": int, "identical": bool, "sds": float | None}
NETWORKS = {"wide": 800, "small": 4}  # hidden units
KINKED = ("billiard", "refractive")  # samplers of networks with kinks
TINY = {"starts": 2, "steps": 5, "chains": 2, "draws": 60, "warmup": 4, "iterations": 3, "particles": 8, "islands": 2,
        "moves": 1, "refresh": 2, "max_tree_depth": 2, "thin": 1, "samples": 2}  # fmt: skip
OLDER = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
RUNS: dict[str, tuple[int, dict[str, str]]] = {
    "first": (1, {}),
    "two threads": (2, {}),
    "again": (1, {}),
    "no AVX": (1, OLDER),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    runs: tuple[str, ...] = tuple(RUNS)
    """Which of them; the first is what the others are compared with."""
    inferences: tuple[str, ...] = tuple(programs.names("inference"))
    csv: Path = OUT


def attacked(network: str, inference: str, run: str, folder: Path) -> tuple[int, Path]:
    """The exit code of an attack, and its posterior."""
    threads, environment = RUNS[run]

    def hook(number: int, event: Event) -> None:
        if event.kind == "begin":
            import torch

            os.environ.update(environment)
            torch.set_num_threads(threads)
        if event.kind == "figure":  # the posterior is written
            os._exit(0)

    known = {s.name for s in programs.described("inference", inference) or []}
    words = [w for n, v in TINY.items() if n in known for w in (f"--inference.{n.replace('_', '-')}", str(v))]
    words += ["--network.activation", "relu"] if inference in KINKED else []
    argv = ["attack", "--inference", inference, "--network.widths", str(NETWORKS[network]), *words]
    return warm.run(argv, folder, hook).code, folder / warm.OUT / "posterior.nc"


def main(settings: Settings) -> None:
    warm.warm()
    table = runs.Rows(settings.csv, COLUMNS, ("network", "inference", "run"))
    done = {table.about(r) for r in table.read()}
    with tempfile.TemporaryDirectory() as scratch:
        for network in NETWORKS:
            for inference in settings.inferences:
                if all((network, inference, run) in done for run in settings.runs):
                    continue
                first = None
                for run in settings.runs:
                    code, path = attacked(network, inference, run, Path(scratch) / network / inference / run)
                    first = first or path
                    same = path.exists() and all(
                        warm.files(path.parent)[name] == warm.files(first.parent)[name]
                        for name in ("posterior.nc", "summary.json")
                    )
                    gap = None if same or code != 0 else apart(first, path)
                    row = {"network": network, "inference": inference, "run": run, "exit_code": code,
                           "identical": same, "sds": gap}  # fmt: skip
                    table.add([row])
                    Console().print(*row.values(), highlight=False)
    Console().print(page(table.read()), highlight=False, markup=False, soft_wrap=True)


def apart(one: Path, other: Path) -> float:
    """The largest difference of a pixel's mean, in posterior sds; of a point, in units of the image's range."""
    a, b = Posterior.load(one), Posterior.load(other)
    sd = 1.0 if a.kind == "point" else np.maximum(a.sd, 1e-12)
    return float(np.max(np.abs(a.mean.astype(np.float64) - b.mean) / sd))


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the page: = where every byte is the same, else the difference in posterior sds."""
    shown = [r for r in RUNS if r != "first"]
    lines = [["inference", *(f"{n}: {r}" for n in NETWORKS for r in shown)]]
    found = {(r["network"], r["inference"], r["run"]): r for r in rows}
    for inference in dict.fromkeys(r["inference"] for r in rows):
        cells = []
        for network in NETWORKS:
            for run in shown:
                r = found.get((network, inference, run))
                refused = r is None or r["exit_code"] != 0
                cells.append("–" if r is None or refused else "=" if r["identical"] else f"{r['sds']:.1g}")
        lines.append([inference, *cells])
    return markdown.table(lines)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
