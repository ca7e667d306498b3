"""What protects, when, at which cost: defences × training steps × adversaries.

Every defence trains the client's network from the same start, and at chosen steps its gradients are attacked by

    own       the attack that the defence's own paper evaluated it with
    classic   the strongest classic attack: the best, on average over the images, of those that know no defence
    knowing   the Bayes adversary, who knows the defence and the data's distribution
    exact     the quotient of a fully connected first layer, which no defence behind it hides

The classic one is chosen with the truth in hand, which can only flatter it. `psnr_blind` is the PSNR of the mean public
image: what a guess scores that has seen no gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pplleak import data, programs, runs
from pplleak.client import Client
from pplleak.client.training import LocalTraining
from pplleak.density import surrogate
from pplleak.federation import rounds
from pplleak.federation.observation import Observation
from pplleak.federation.protection import QUIET, Protection
from pplleak.federation.rounds import Federation
from pplleak.federation.scenario import Scenario, client_of, observe
from pplleak.posterior import metrics
from pplleak.runs import Rows
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack
from pplleak.studies.defend import candidates
from pplleak.studies.defend.adversaries import CLASSIC, adversaries, models

Row = dict[str, Any]
ROLES = ("own", "classic", "knowing", "exact")
EXACT = "quotient"
KEY = ("defence", "strength", "step", "model", "index")
IMAGE_COLUMNS = {
    "defence": str, "strength": str, "step": int, "model": str, "index": int, "inference": str, "found_by": str,
    "psnr": float, "ssim": float | None, "rms": float, "psnr_blind": float, "bits": float | None, "converged": bool,
    "cpu_seconds": float,
}  # fmt: skip
COLUMNS = (
    "dataset", "network", "defence", "strength", "step", "attack", "images", "psnr_mean", "psnr_se", "accuracy",
    "epsilon", "model", "inference", "batch_size", "psnr_blind", "gap_mean", "gap_se", "gain_mean", "gain_se",
    "ssim_mean", "recovered", "bits", "cpu_seconds",
)  # fmt: skip
FLOOR = 0.01  # σ believed in where there is no noise, in units of a typical entry: a peak that can be climbed


@dataclass(frozen=True)
class Sweep:
    """What all attacks of a sweep have in common; plain values, which a worker process can be sent."""

    out: Path
    data: str = "digits"
    data_root: Path | None = None
    network: Named = Named("convnet")
    federation: Federation = field(default_factory=Federation)
    local: LocalTraining | None = None
    batch_size: int = 1
    classic_steps: int = 300
    inference: str = "map"
    inference_settings: Mapping[str, Any] = field(default_factory=dict)
    surrogate: float | None = None
    seed: int = 0
    readable: tuple[str, ...] = ()  # the defences behind which the first layer can be read, in words

    @property
    def settings_in_common(self) -> dict[str, Any]:
        """The settings that one folder of results has in common."""
        return runs.settings(self, leaving=("out", "data_root", "readable"))


@dataclass(frozen=True)
class Job:
    """Every attack on one gradient: that of a batch of images from `index` on, `step` steps into a training."""

    protection: Protection
    step: int
    index: int


def attackers(sweep: Sweep, protected: Protection) -> list[str]:
    """Every model that attacks, the one that knows the defence last; `quotient` is one where it can be had."""
    *others, knowing = models(protected.name)
    return [*others, *[EXACT] * (str(protected) in sweep.readable), knowing]


def keys(sweep: Sweep, job: Job) -> set[tuple[Any, ...]]:
    """Of the rows that a job makes."""
    shared = job.protection.name, job.protection.strength, job.step
    return {(*shared, model, job.index) for model in attackers(sweep, job.protection)}


def jobs(protections: Sequence[Protection], steps: Sequence[int], indices: Sequence[int]) -> list[Job]:
    """Every gradient, image by image, so that what Ctrl-C leaves is a sweep of fewer images."""
    return [Job(p, s, i) for i in indices for p in protections for s in steps]


def folder(sweep: Sweep, protected: Protection) -> Path:
    """Where the training of a defence keeps its checkpoints."""
    return _folder(sweep, protected.name, protected.strength)


def _folder(sweep: Sweep, name: str, strength: str) -> Path:
    label = f"{name}:{strength}" if strength else name
    return sweep.out / "training" / label.translate(str.maketrans(":,= ()", "------"))


def _client(sweep: Sweep, protected: Protection) -> Client:
    return client_of(_scenario(sweep, protected))


def _scenario(sweep: Sweep, protected: Protection) -> Scenario:
    return Scenario(
        sweep.data, sweep.data_root, batch_size=sweep.batch_size, network=sweep.network, local=sweep.local,
        protection=protected, seed=sweep.seed,
    )  # fmt: skip


def checked(sweep: Sweep, protections: Sequence[Protection]) -> Sweep:
    """The sweep, and behind which defences images can be read; BadInput for one that cannot train the network."""
    readable = []
    for protected in protections:
        client = _client(sweep, protected)
        rounds.require(client, data.public(sweep.data, sweep.data_root), sweep.federation, protected)
        if candidates.readable(client):
            readable.append(str(protected))
    return replace(sweep, readable=tuple(readable))


def train(sweep: Sweep, protected: Protection, steps: Sequence[int]) -> bool:
    """Train behind one defence, or go on; True when all steps are done."""
    test, client = data.private(sweep.data, sweep.data_root), _client(sweep, protected)
    settings = rounds.record(
        sweep.data, sweep.network, sweep.federation, protected, local=sweep.local, seed=sweep.seed,
    )  # fmt: skip
    _, whole = rounds.train(
        client, data.public(sweep.data, sweep.data_root), test, sweep.federation, protected,
        folder(sweep, protected), checkpoints=steps, settings=settings, seed=sweep.seed,
    )  # fmt: skip
    return whole


def run(sweep: Sweep, job: Job) -> list[Row]:
    """Every attack on one gradient, scored: PSNR and SSIM (a batch's mean), RMS of a pixel, CPU seconds.

    Where the knowing adversary climbs to a point, it also climbs from the reconstructions of the other attacks, and
    keeps the one that its own posterior density ranks highest (`found_by`): no truth is needed for that.
    """
    protected, who = job.protection, adversaries(job.protection.name)
    checkpoint = rounds.path(folder(sweep, protected), job.step)
    scenario = replace(_scenario(sweep, protected), index=job.index, checkpoint=checkpoint)
    observed = observe(replace(scenario, noise_seed=sweep.seed + job.index))
    assert observed.truth is not None and observed.public is not None
    truth, made = observed.truth.numpy(), []
    images: dict[str, np.ndarray] = {}
    blind = np.broadcast_to(observed.public.mean(0).numpy(), truth.shape)
    for model in attackers(sweep, protected):
        begin = time.process_time()
        if model == EXACT:
            result = {"inference": EXACT, "found_by": EXACT, "bits": None, "converged": True}
            x = candidates.read_off(observed, who.knowing)
        else:
            x, result = _climbed(sweep, job, observed, model, images)
        spent = time.process_time() - begin
        if x is not None:
            images[model] = x
        x = blind if x is None else x[metrics.match(x, truth)]
        similar = float(metrics.ssim(x, truth).mean())
        made.append({
            "defence": protected.name, "strength": protected.strength, "step": job.step, "model": model,
            "index": job.index, "psnr": float(metrics.psnr(x, truth).mean()),
            "ssim": None if math.isnan(similar) else similar,
            "rms": float(np.sqrt(np.mean((np.clip(x, 0, 1).astype(np.float64) - truth) ** 2))),
            "psnr_blind": float(metrics.psnr(blind, truth).mean()), "cpu_seconds": round(spent, 2), **result,
        })  # fmt: skip
    return made


def _climbed(
    sweep: Sweep, job: Job, observed: Observation, model: str, images: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, Row]:
    """What one model reconstructs, and the rest of its row; `images` are those that others reconstructed before."""
    knowing, victim, wide = model == adversaries(job.protection.name).knowing, observed, {}
    inference, settings = "map", {"steps": sweep.classic_steps}
    if knowing:
        inference = sweep.inference
        settings = {**sweep.inference_settings, **programs.preferred(model, inference)}  # modes that only it has
        if sweep.surrogate is not None and observed.client.kinks:
            victim = surrogate.believed(observed, sweep.surrogate)
        if observed.sigma == QUIET:
            wide["sigma"] = FLOOR * entry_scale(observed)
    posterior = attack(victim, model, inference, beliefs=wide, settings=settings, seed=sweep.seed + job.index).whole()
    x, by = posterior.mode if posterior.kind == "point" else posterior.mean, model
    if knowing and posterior.kind == "point":
        held = EXACT in images and candidates.holds(observed, model)
        known = EXACT if wide and held else model  # without noise, every posterior collapses to that
        steps = sweep.classic_steps // 2
        by, x = candidates.best(observed, model, {}, {**images, model: x}, known, wide=wide, steps=steps)
    bits = posterior.attrs.get("bits")
    return x, {"inference": inference, "found_by": by, "bits": bits, "converged": posterior.converged}


@torch.no_grad()
def entry_scale(observed: Observation) -> float:
    """The RMS of an entry of the update, as an adversary can know it: that of the mean public image."""
    assert observed.public is not None and observed.labels is not None
    x = observed.public.mean(0).expand(observed.batch_size, *observed.client.input_shape)
    update = observed.client.update(x, observed.labels)
    return float((update.sqnorm() / update.size).sqrt())


# -- rows ------------------------------------------------------------------------------------------------------------


def cells(sweep: Sweep, rows: Iterable[Row], delta: float) -> list[Row]:
    """A row of COLUMNS for each defence, strength, step and role, averaged over its images.

    gap: PSNR less that of the knowing adversary on the undefended network at the same step; gain: less that of the
    classic attack on the same gradients. Both paired over the images that have both, with standard errors. recovered:
    the share of images that came back within `delta` (RMS of a pixel).
    """
    groups: dict[tuple[str, str, int], dict[str, dict[int, Row]]] = {}
    for r in rows:
        groups.setdefault((r["defence"], r["strength"], r["step"]), {}).setdefault(r["model"], {})[r["index"]] = r
    logs: dict[tuple[str, str], dict[int, Row]] = {}
    made: list[Row] = []
    for (name, strength, step), by_model in groups.items():
        who = adversaries(name)
        classic = [m for m in CLASSIC if m in by_model]
        best = max(classic, key=lambda m: np.mean([r["psnr"] for r in by_model[m].values()]), default="")
        bare = groups.get(("none", "", step), {}).get(adversaries("none").knowing, {})
        if (name, strength) not in logs:
            logs[name, strength] = {r["step"]: r for r in rounds.log(_folder(sweep, name, strength))}
        trained = logs[name, strength].get(step, {})
        for role, model in zip(ROLES, (who.own, best, who.knowing, EXACT), strict=True):
            mine = by_model.get(model, {})
            if not mine:
                continue
            mean, se = _mean([r["psnr"] for r in mine.values()])
            gap, gap_se = _mean([r["psnr"] - bare[i]["psnr"] for i, r in mine.items() if i in bare])
            known = by_model.get(best, {})
            gain, gain_se = _mean([r["psnr"] - known[i]["psnr"] for i, r in mine.items() if i in known])
            made.append({
                "dataset": sweep.data, "network": sweep.network.name, "defence": name, "strength": strength,
                "step": step, "attack": role, "images": len(mine), "psnr_mean": mean, "psnr_se": se,
                "accuracy": trained.get("accuracy"), "epsilon": trained.get("epsilon"), "model": model,
                "inference": next(iter(mine.values()))["inference"], "batch_size": sweep.batch_size,
                "psnr_blind": _mean([r["psnr_blind"] for r in mine.values()])[0],
                "gap_mean": gap, "gap_se": gap_se, "gain_mean": gain, "gain_se": gain_se,
                "ssim_mean": _mean([r["ssim"] for r in mine.values() if r["ssim"] is not None])[0],
                "recovered": _mean([float(r["rms"] <= delta) for r in mine.values()])[0],
                "bits": _mean([r["bits"] for r in mine.values() if r["bits"] is not None])[0],
                "cpu_seconds": _mean([r["cpu_seconds"] for r in mine.values()])[0],
            })  # fmt: skip
    return made


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard error; None where there are too few."""
    if not values:
        return None, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(np.mean(values)), error


def images(path: Path) -> Rows:
    """The table of one attack a row that a sweep goes on from."""
    return Rows(path, IMAGE_COLUMNS, KEY)


def write(path: Path, cells: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """The averages, for people: floats with six digits."""
    runs.table(path, cells, columns, lambda v: f"{v:.6g}" if isinstance(v, float) else v)
