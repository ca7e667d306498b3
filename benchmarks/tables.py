"""What does a gradient of a table's records reveal, to TabLeak, to a MAP and to the posterior?

    uv run benchmarks/tables.py --data-root ../shared/data

UCI Adult behind the network of TabLeak (Vero et al. 2023), 100 and 100 ReLU units with random weights, labels known.
The same batches of held-out rows for every attack:

    guess      each column's most frequent category, and the number that most public rows are near: no gradient
    rows       as many public rows, drawn at random: no gradient either, but of a batch the matching of records, which
               all attacks are given, finds a likely stranger for everyone
    tableak    their relaxation, 30 starts pooled by the median
    map        of the prior `records`, greedy sweeps over the codes in turns with the climb of the numbers, from the
               sampler's starts: 4 draws of the prior, 4 relaxed climbs and what is read off the first layer; 500 steps
               of Adam and up to 5 of Newton, of several records 1500 of Adam alone
    posterior  the sampler `gibbs`, each cell by the decision for its 0-1 loss

cell_accuracy: a category exactly, a number within 10 % of its range; se: its standard error over the batches;
exact_match: records that are right in every cell; ece: expected calibration error of the posterior's cells, and
ece_by_chance the one it would have on average, and ece_95 in one of twenty cases, were the truth of each batch one of
its posterior's draws: cells of a record go wrong together; settled: share of the batches with R-hat below 1.1, of
short chains out of four islands the nested one;
seconds: of one core's processor time an attack, the mean.
A batch that the CSV of batches holds is not run again; `minutes` ends a piece of the work, in which `workers` processes
of one thread attack a batch each. Rows are kept as they come: what is cut off loses only the batches it was at.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from pplleak import markdown, runs
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import Posterior, cells
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack

COLUMNS = {
    "data": str, "batch": int, "sigma": float, "attack": str, "batches": int, "cell_accuracy": float,
    "se": float | None, "exact_match": float, "ece": float | None, "ece_by_chance": float | None,
    "ece_95": float | None,
    "settled": float | None, "seconds": float,
}  # fmt: skip
EACH = {
    "data": str, "batch": int, "sigma": float, "attack": str, "index": int, "cell_accuracy": float,
    "exact_match": float, "claims": str, "right": str, "drawn": str, "rhat": float | None, "seconds": float,
}  # fmt: skip
ATTACKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tableak": ("tableak", "ensemble", {}),
    "map": ("optimal:prior=records", "map", {"starts": 4, "steps": 500}),
    "posterior": ("optimal:prior=records", "gibbs", {"draws": 40, "settle": 1, "moves": 1, "inner": 1}),
}
MANY = {"steps": 1500, "polish": 0}  # of a MAP of several records: as many steps as TabLeak's, no Newton steps
CHAINS = {1: (16, 128)}  # of a batch of so many, and particles of the warm-up; of others FEW
FEW = (8, 32)
ISLANDS = 4
CHANCE = 400  # draws for `ece_by_chance`
STRANGERS = 20  # draws of public rows
TWINS = 40  # draws of a posterior that its truth is compared with
SHOWN = {"guess": "no gradient", "rows": "public rows", "tableak": "TabLeak", "map": "MAP", "posterior": "posterior"}
AGAINST = ("tableak", "map", "rows")


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "adult"
    data_root: Path = Path("data")
    """Where adult/ lies."""
    batches: tuple[int, ...] = (1, 8)
    """Records behind a gradient."""
    sigmas: tuple[float, ...] = (1e-6, 0.01, 0.1)
    """Noise on each entry; 1e-6 is what a clean gradient is given."""
    count: tuple[int, ...] = (10, 4)
    """Batches of each size."""
    attacks: tuple[str, ...] = ("guess", "rows", "tableak", "map", "posterior")
    minutes: float = 30.0
    """Begin nothing after so long."""
    workers: int = 1
    """Processes of one thread, an attack each."""
    csv: Path = Path("benchmarks/results/tables.csv")


def batch_of(args: Settings, size: int, sigma: float, k: int) -> Observation:
    return observe(
        Scenario(
            args.data, args.data_root, index=size * k, batch_size=size, seed=k, dtype="float64",
            network=Named("mlp", {"widths": (100, 100), "activation": "relu"}),
            protection=Protection(channel=Named("gaussian", {"sigma": sigma})),
        )
    )  # fmt: skip


def measure(args: Settings, job: tuple[int, float, str, int]) -> dict[str, Any]:
    """A job's row."""
    size, sigma, name, k = job
    observed = batch_of(args, size, sigma, k)
    columns = observed.client.columns
    begun = time.process_time()
    assert columns is not None and observed.truth is not None and observed.public is not None
    about = {"data": args.data, "batch": size, "sigma": sigma, "attack": name, "index": k}
    if name == "guess":
        truth = columns.record(observed.truth).numpy()
        right = cells.agrees(columns, cells.guess(columns, observed.public)[None], truth)
        claims, drawn, rhat = np.array([]), "", None
    elif name == "rows":
        right, claims, drawn, rhat = strangers(observed, k), np.array([]), "", None
    else:
        model, inference, settings = ATTACKS[name]
        if name == "map" and size > 1:
            settings = {**settings, **MANY}
        if name == "posterior":
            chains, particles = CHAINS.get(size, FEW)
            settings = {**settings, "chains": chains, "particles": particles, "short": particles // ISLANDS}
        found = attack(observed, model, inference, settings=settings, seed=k)
        made = cells.cells(found, columns)
        assert made.right is not None
        right, rhat = made.right, found.rhat_max
        claims = np.array([]) if found.kind == "point" else made.probability.ravel()
        drawn = "" if found.kind == "point" else alike(found, made)
    return {
        **about, "cell_accuracy": float(right.mean()), "exact_match": float(right.all(-1).mean()),
        "claims": " ".join(f"{c:.4f}" for c in claims),
        "right": "".join(str(int(r)) for r in right.ravel() if name != "rows"),
        "drawn": drawn, "rhat": None if rhat is None or not math.isfinite(rhat) else rhat,
        "seconds": time.process_time() - begun,
    }  # fmt: skip


def strangers(observed: Observation, seed: int) -> np.ndarray:
    """Which cells of public rows are right, (draws · batch, columns), matched with the private ones."""
    columns = observed.client.columns
    assert columns is not None and observed.truth is not None and observed.public is not None
    truth = columns.record(observed.truth).numpy()
    draw, right = np.random.default_rng(seed), []
    for _ in range(STRANGERS):
        picks = draw.choice(len(observed.public), len(truth), replace=False)
        seen = columns.record(observed.public[picks].to(observed.truth)).numpy()
        right.append(cells.agrees(columns, seen[cells.matched(columns, seen, truth)], truth))
    return np.concatenate(right)


def alike(found: Posterior, made: cells.Cells) -> str:
    """Which cells would be right, were the truth one of some draws: a word of 0 and 1 for each."""
    draws = made.columns.record(torch.as_tensor(found.draws)).numpy()
    picks = np.linspace(0, len(draws) - 1, TWINS).astype(int)
    draws = cells.aligned(made.columns, made.estimate, draws[picks])  # as the truth is
    return " ".join("".join(str(int(r)) for r in cells.agrees(made.columns, made.estimate, d).ravel()) for d in draws)


def by_chance(rows: list[dict[str, Any]], claims: np.ndarray) -> np.ndarray:
    """Expected calibration errors, were the truth of each batch a draw of its posterior: cells go wrong together."""
    pick = np.random.default_rng(0)
    made = []
    for _ in range(CHANCE):
        words = [pick.choice(r["drawn"].split()) for r in rows]
        made.append(cells.calibration_error(claims, np.array([int(c) for w in words for c in w])))
    return np.array(made)


def pooled(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches of one size, noise and attack in one row."""
    accuracy = np.array([r["cell_accuracy"] for r in rows])
    claims = np.array([float(c) for r in rows for c in r["claims"].split()])
    right = np.array([int(c) for r in rows for c in r["right"]])
    chance = by_chance(rows, claims) if len(claims) else np.array([])
    return {
        **{n: rows[0][n] for n in ("data", "batch", "sigma", "attack")}, "batches": len(rows),
        "cell_accuracy": float(accuracy.mean()),
        "se": float(accuracy.std(ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else None,
        "exact_match": float(np.mean([r["exact_match"] for r in rows])),
        "ece": cells.calibration_error(claims, right) if len(claims) else None,
        "ece_by_chance": float(chance.mean()) if len(claims) else None,
        "ece_95": float(np.quantile(chance, 0.95)) if len(claims) else None,
        "settled": float(np.mean([(r["rhat"] or math.inf) < 1.1 for r in rows])) if len(claims) else None,
        "seconds": float(np.mean([r["seconds"] for r in rows])),
    }  # fmt: skip


def grouped(every: Sequence[dict[str, Any]]) -> dict[tuple[str, int, float, str], list[dict[str, Any]]]:
    """Batches by data, size, noise and attack, in the order in which they come."""
    groups: dict[tuple[str, int, float, str], list[dict[str, Any]]] = {}
    for r in every:
        groups.setdefault((r["data"], r["batch"], r["sigma"], r["attack"]), []).append(r)
    return groups


def page(every: Sequence[dict[str, Any]]) -> str:
    """Two tables, a line a size and noise: what share of the cells and of the records each attack has right; and what
    the posterior gains on others, paired by batch, and how honest it is."""
    groups = grouped(every)
    right = [["data, batch, noise", "batches", *(f"{name}, %" for name in SHOWN.values())]]
    gains = [["data, batch, noise", *(f"over {SHOWN[n]}, points" for n in AGAINST), "calibration error (by chance)",
              "settled", "seconds"]]  # fmt: skip
    for data, size, sigma in sorted({about[:3] for about in groups}):
        of = {name: {r["index"]: r for r in groups.get((data, size, sigma, name), [])} for name in SHOWN}
        about, counts = (
            f"{data}, {size}, σ {sigma:g}".replace("e-0", "e-"),
            sorted({len(batches) for batches in of.values() if batches}),
        )
        right.append([about, " to ".join(dict.fromkeys([str(counts[0]), str(counts[-1])]))])
        for name in SHOWN:
            mine = of[name].values()
            whole = f"; {100 * np.mean([r['exact_match'] for r in mine]):.0f}" if mine else ""
            right[-1].append(percent([r["cell_accuracy"] for r in mine]) + whole)
        if own := of["posterior"]:
            gaps = [[r["cell_accuracy"] - of[other][k]["cell_accuracy"] for k, r in own.items() if k in of[other]]
                    for other in AGAINST]  # fmt: skip
            honest = pooled(list(own.values()))
            gains.append([about, *(percent(gap, sign="+") for gap in gaps),
                          f"{honest['ece']:.3f} ({honest['ece_by_chance']:.3f})", f"{honest['settled']:.0%}",
                          f"{honest['seconds']:.0f}"])  # fmt: skip
    return "\n\n".join(map(markdown.table, (right, gains))) + "\n"


def percent(shares: Sequence[float], sign: str = "") -> str:
    """Their mean and, of several, its standard error, in percent; – of none."""
    if not shares:
        return "–"
    spread = f" ± {100 * np.std(shares, ddof=1) / math.sqrt(len(shares)):.1f}" if len(shares) > 1 else ""
    return f"{100 * np.mean(shares):{sign}.1f}{spread}"


def in_step(sizes: Sequence[int], counts: Sequence[int]) -> list[tuple[int, int]]:
    """The k-th batch of every size, so that all sizes are about equally far whenever the work ends."""
    every = [(k, size, (k + 1) / count) for size, count in zip(sizes, counts, strict=True) for k in range(count)]
    return [(k, size) for k, size, _ in sorted(every, key=lambda one: one[2])]


def in_time[Job](jobs: Sequence[Job], end: float) -> Iterator[Job]:
    """Those that are asked for before the clock stands at `end`."""
    for job in jobs:
        if time.monotonic() > end:
            return
        yield job


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    each = args.csv.with_name(f"{args.csv.stem}_batches.csv")
    kept = runs.Rows(each, EACH, ("data", "batch", "sigma", "attack", "index"))
    done = {kept.about(r) for r in kept.read()}
    jobs = [
        (size, sigma, name, k)
        for k, size in in_step(args.batches, args.count)
        for sigma in args.sigmas
        for name in args.attacks
        if (args.data, size, sigma, name, k) not in done
    ]
    left, end = len(jobs), time.monotonic() + 60 * args.minutes
    with runs.workers(args.workers) as executor:
        work = functools.partial(measure, args)
        for row in runs.spread(work, in_time(jobs, end), executor, ahead=executor.count):
            kept.add([row])
            left -= 1
    every = kept.read()
    rows = [pooled(g) for g in grouped(every).values()]
    runs.table(args.csv, rows, list(COLUMNS))
    runs.text(args.csv.with_suffix(".md"), page(every))
    for r in rows:
        error = "" if r["se"] is None else f" ± {r['se']:.1%}"
        ece = ""
        if r["ece"] is not None:
            ece = (f", ECE {r['ece']:.3f} ({r['ece_by_chance']:.3f} by chance, at most {r['ece_95']:.3f}), "
                   f"{r['settled']:.0%} settled")  # fmt: skip
        print(f"batch {r['batch']}, σ {r['sigma']:g}, {r['attack']}: {r['cell_accuracy']:.1%}{error} of the cells, "
              f"{r['exact_match']:.0%} of the records{ece}; {r['batches']} batches, {r['seconds']:.0f} s")  # fmt: skip
    print(f"{left} attacks are left: run it again" if left else "complete")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
