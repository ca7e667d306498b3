"""Attack many observations within a budget, the cheap and exact attacks first, and score them against the truth.

Breadth first: every observation is attacked by the first attack before any is by the second, so that something is said
of each, however short the time (`plan`). What was done stands in the folder, row by row, and the same command goes on;
the time it took counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplleak import programs, runs
from pplleak.data import Images
from pplleak.errors import BadInput, printable
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, metrics
from pplleak.posterior.summary import examples
from pplleak.programs import AUTO, MODEL
from pplleak.progress import ProgressBar, silent
from pplleak.runs import Rows
from pplleak.studies.attack.attack import attack, choose
from pplleak.studies.audit import counted
from pplleak.studies.audit.clock import Clock
from pplleak.studies.audit.knowledge import Labels, prepared, shared_anew
from pplleak.studies.audit.plan import Item, Job, Plan

Row = dict[str, Any]
COLUMNS = {
    "name": str, "attack": str, "status": str, "why": str, "seconds": float, "labels": str, "examples": int,
    "protection": str, "epsilon": float | None, "replay": float | None, "guess_psnr": float | None,
    "gain": float | None, "psnr": float | None, "best_psnr": float | None, "worst_psnr": float | None,
    "coverage_90": float | None, "bits": float | None, "sd_ratio": float | None,
    "fits": bool | None, "converged": bool | None,
    "trusted": bool | None, "assumed": str, **counted.COLUMNS,
}  # fmt: skip
BEHIND = {"behind": str, **COLUMNS, "cosine": float | None, "each": str}  # of what was shared anew
KEY, KEY_BEHIND = ("name", "attack"), ("name", "behind", "attack")
TABLE_BEHIND = "protections.csv"
TABLE, SETTINGS = "audit.csv", "audit.json"
SPENT = "its share of the time was spent before it ended"
DONE, CUT, DECLINED, LATE, KILLED = "done", "cut short", "does not apply", "no time", "was killed"
Answer = tuple[Row, Posterior | None]
COSTS = (1.0, 2.0, 8.0, 16.0)  # of the first attacks, and of every further one


def attacker(
    load: Callable[[Path], Observation],
    *,
    public: Images | None = None,
    labels: Labels = "auto",
    model: str = MODEL,
    beliefs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    command: str = "",
) -> Callable[[Job], Answer]:
    """What does one job of an audit: the row of its attack, and the posterior where there is one.

    Args:
        load: reads an observation. public: images that are guessed from, for comparison. settings: of each inference.
        command: what was asked for, for the record.

    What is given back raises KeyboardInterrupt for Ctrl-C.
    """

    def one(job: Job) -> Answer:
        clock = Clock(job.seconds)
        begin = time.perf_counter()
        row, posterior = _empty(job.item, job.attack), None
        try:
            if clock.seconds < 0.1:
                raise TimeoutError
            observed = load(job.item.path)
            if job.item.behind:
                observed, row["cosine"] = shared_anew(job.item, observed, seed)
            observed, row["labels"], row["assumed"] = prepared(job.item, observed, labels)
            row |= _said(observed)
            guessed = None
            if counted.discrete(observed):
                row |= counted.named(observed)
            elif observed.truth is not None and public is not None and public.x.shape[1:] == observed.truth.shape[1:]:
                guessed = guess(public, observed.truth.cpu().numpy(), observed.labels)
                row["guess_psnr"] = float(guessed.mean())
            given = (settings or {}).get(job.attack, {})
            found = attack(observed, model, job.attack, beliefs=beliefs, settings=given, seed=seed, progress=clock)
        except BadInput as error:
            row |= {"status": DECLINED, "why": printable(error, 400)}
        except (KeyboardInterrupt, TimeoutError) as stop:
            if isinstance(stop, KeyboardInterrupt) and not clock.fired:
                raise
            row |= {"status": LATE, "why": "the budget of time was spent before it had a result"}
        else:
            if found.interrupted and not clock.fired:
                raise KeyboardInterrupt
            reasons = tuple(SPENT if r.startswith("interrupted") else r for r in found.reasons)
            said = {"labels_are": row["labels"], "assumed": row["assumed"], "command": command}
            posterior = found.with_(reasons=reasons, attrs={**found.attrs, **said})
            row |= {"status": CUT if clock.fired else DONE, **scores(posterior, guessed)}
            row |= counted.scores(posterior, observed.public)
            if job.item.behind:
                row["each"] = " ".join(f"{v:.2f}" for v in near(posterior))
        row["seconds"] = round(time.perf_counter() - begin, 3)
        return row, posterior

    return one


def plan(
    out: Path,
    found: Sequence[Item],
    attacks: Sequence[str],
    budget: float,
    defences: Sequence[str] = (),
    sampled: bool = False,
) -> Plan:
    """What is to be done in a folder; what stands there already counts, with the time that it took.

    Args:
        attacks: inferences by name, the cheap ones first; `auto` chooses the posterior's. budget: seconds for all.
        defences: protections behind which the private batches are shared anew, to be attacked by all but `auto`;
            sampled: and by that. Records and sentences behind noise have no other adversary that knows of it.
    """
    anew = [replace(i, behind=d) for d in defences for i in found if i.truth is not None]
    jobs = [(i, a, COSTS[min(k, len(COSTS) - 1)]) for k, a in enumerate(attacks) for i in found]
    jobs += [(i, a, COSTS[min(k, len(COSTS) - 1)]) for k, a in enumerate(attacks) if sampled or a != AUTO
             for i in anew]  # fmt: skip
    asked = {(i.name, i.behind, a): (i, a, cost) for i, a, cost in jobs}
    rows = [r for t in tables(out) for r in t.read() if r["status"] not in (LATE, KILLED)]
    spent = {(r["name"], r.get("behind", ""), r["attack"]): r["seconds"] for r in rows}
    return Plan(budget, asked, {key: s for key, s in spent.items() if key in asked})


def tables(out: Path) -> tuple[Rows, Rows]:
    """The rows of what was recorded, and of what was shared anew."""
    return Rows(out / TABLE, COLUMNS, KEY), Rows(out / TABLE_BEHIND, BEHIND, KEY_BEHIND)


def audit(
    planned: Plan,
    results: Iterable[Answer],
    out: Path,
    *,
    load: Callable[[Path], Observation],
    labels: Labels = "auto",
    model: str = MODEL,
    beliefs: Mapping[str, Any] | None = None,
    progress: ProgressBar = silent,
) -> None:
    """Keep the row of every attack in `out` as it comes, and its posterior where there is one.

    Args:
        results: what becomes of the jobs of the plan, as they are taken. load, …: as `attacker` takes them.

    Raises:
        KeyboardInterrupt: Ctrl-C; the rows that are there stay.
        WorkerLost: workers were killed over some attacks; the others are done.
    """
    recorded, anew = tables(out)

    def keep(row: Row) -> None:
        planned.ended(row)
        (anew if row.get("behind") else recorded).add([row])

    for item, name, _ in planned.missing():  # what no sampler takes wants no share of the time
        if name == AUTO and (why := _unsampled(item, load, labels, model, beliefs)):
            keep(_empty(item, AUTO) | {"status": DECLINED, "why": why, "seconds": 0.0})
    try:
        for _, (row, posterior) in zip(progress("attacks", len(planned.missing())), results, strict=False):
            if posterior is not None and not row.get("behind"):
                posterior.save(place(out, row["name"], row["attack"]))
            keep(row)
    except runs.WorkerLost as error:
        for key in list(planned.running):
            item, name, _ = planned.jobs[key]
            keep(_empty(item, name) | {"status": KILLED, "why": printable(error, 400), "seconds": 0.0})
        raise


def _empty(item: Item, attack: str) -> Row:
    said = dict.fromkeys(("why", "labels", "protection", "assumed", "unit"), "")
    behind = {"behind": item.behind, "each": ""} if item.behind else {}
    return {"name": item.name, "attack": attack, "examples": 0, **said, **behind}


def _unsampled(
    item: Item, load: Callable[[Path], Observation], labels: Labels, model: str, beliefs: Mapping[str, Any] | None
) -> str:
    """Why no sampler gives a posterior that could be believed; "" where one does, or where that is found out later."""
    try:
        observed, _, _ = prepared(item, load(item.path), labels)
        name, why = choose(observed, model, beliefs)
    except BadInput:
        return ""
    return f"no posterior: {printable(why, 380)}" if observed.client.kinks and name not in programs.declining() else ""


def place(out: Path, name: str, attack: str) -> Path:
    """Where the posterior of an attack lies."""
    return out / "attacks" / f"{name}.{Path(attack).stem}.nc"


def _said(observed: Observation) -> Row:
    """What is known of an observation before it is attacked; with the truth, how well the client as it is modelled
    explains what was shared (`replay`, ‖u(truth) − g‖ / ‖g‖)."""
    privacy = observed.provenance.get("privacy") or {}
    row: Row = {"examples": observed.batch_size, "protection": str(observed.protection),
                "epsilon": privacy.get("epsilon")}  # fmt: skip
    if observed.truth is None:
        return row
    plain = observed.protection.channel is None or observed.protection.channel.name == "gaussian"
    if plain and observed.labels is not None and "recovered_labels" not in observed.provenance:
        with torch.no_grad():
            u = observed.client.update(observed.truth, observed.labels).materialise().double()
        row["replay"] = float((u - observed.g.double()).norm() / observed.g.double().norm())
    return row


def guess(public: Images, truth: np.ndarray, labels: Tensor | None) -> np.ndarray:
    """PSNR (batch,) of what needs no update at all: the mean public image, or the mean one of its class, where the
    adversary has the labels and that is nearer."""
    whole = public.x.mean(0).expand(truth.shape)
    best = metrics.psnr(whole.cpu().numpy(), truth)
    if labels is None:
        return best
    means = torch.stack([public.x[of].mean(0) if (of := public.y == k).any() else whole[0] for k in labels.tolist()])
    return np.maximum(best, metrics.psnr(means.cpu().numpy(), truth))


def scores(posterior: Posterior, guessed: np.ndarray | None = None) -> Row:
    """The numbers of a result, over the batch and of its best and worst example. gain: by how much an example at most
    is nearer than its guess, dB."""
    summary, each = posterior.summary, near(posterior)
    return {
        "gain": None if guessed is None or not each else float(max(np.array(each) - guessed)),
        "psnr": sum(each) / len(each) if each else None,
        "best_psnr": max(each, default=None), "worst_psnr": min(each, default=None),
        **{n: summary.get(n) for n in ("coverage_90", "bits", "sd_ratio", "fits", "converged", "trusted")},
    }  # fmt: skip


def near(posterior: Posterior) -> list[float]:
    """PSNR of every image's nearest reconstruction, of the mode and the mean; [] without the truth."""
    if counted.counts(posterior):
        return []
    point = posterior.kind == "point"
    return [max(v for v in (e["psnr_map"], None if point else e["psnr_mean"]) if v is not None)
            for e in examples(posterior)]  # fmt: skip


def results(out: Path, rows: Sequence[Row]) -> Iterator[tuple[str, list[tuple[Row, Path | None]]]]:
    """The rows of an audit's folder by observation, each with its posterior where it has one."""
    for name in dict.fromkeys(r["name"] for r in rows):
        of = [r for r in rows if r["name"] == name]
        yield name, [(r, p if (p := place(out, name, r["attack"])).is_file() else None) for r in of]
