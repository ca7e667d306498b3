"""Risk: how often a reconstruction comes within δ of the private image, and how often its adversary claims it does.

    R(f) = P(d(x, f(g)) > δ)                       success = 1 − R(f)   (Balunović et al. 2022, section 4)
    claimed(δ)  = mean over observations g of P(d(x, f(g)) ≤ δ | g), by posterior draws that f did not see
    realised(δ) = fraction of true images with d(x, f(g)) ≤ δ

Where the truths are drawn from the model itself and the posterior is right, both estimate the same number. On real
images their gap is the price of a wrong belief; on draws from the model, that of a wrong computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Unit

from pplleak import programs, runs
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, decisions, metrics
from pplleak.runs import Rows
from pplleak.studies.attack.attack import believe

Name = Literal["rms", "l2", "psnr", "ssim"]
Row = dict[str, Any]
COLUMNS = {"index": int, "example": int, "inference": str, "decision": str, "delta": float, "claimed": float | None,
           "distance": float, "success": int, "converged": bool}  # fmt: skip
MOST = 2000  # posterior draws that are looked at, evenly spaced; SSIM takes a tenth


@dataclass(frozen=True)
class Distance:
    """What counts as a success: a distance of at most δ, or a PSNR of at least that.

    caption: the axis of the picture. grid: the default values of δ, `l2`'s in RMS.
    """

    name: Name
    caption: str
    grid: tuple[float, ...]

    def __call__(self, x: np.ndarray, truths: np.ndarray) -> np.ndarray:
        """d(x, truth) of each example: x (batch, *input_shape), truths (N, batch, *input_shape) -> (N, batch). The
        examples are matched first; for PSNR and SSIM the reconstruction is clipped to [0, 1], as everywhere."""
        x = np.broadcast_to(x, truths.shape)
        if truths.shape[1] > 1:
            x = np.stack([a[metrics.match(a, b)] for a, b in zip(x, truths, strict=True)])
        if self.name == "ssim":
            return np.stack([1 - metrics.ssim(a, b) for a, b in zip(x, truths, strict=True)])
        if self.name == "psnr":
            return np.stack([metrics.psnr(a, b) for a, b in zip(x, truths, strict=True)])
        square = ((x.astype(np.float64) - truths) ** 2).reshape(*truths.shape[:2], -1)
        return np.sqrt(square.sum(-1) if self.name == "l2" else square.mean(-1))

    def within(self, values: np.ndarray, delta: float) -> np.ndarray:
        return values >= delta if self.name == "psnr" else values <= delta

    def radius(self, delta: float, pixels: int) -> float | None:
        """δ as an L2 distance, what the ball decision asks for; None for SSIM, which is none."""
        rms = {"l2": delta / math.sqrt(pixels), "rms": delta, "psnr": 10 ** (-delta / 20), "ssim": None}[self.name]
        return None if rms is None else rms * math.sqrt(pixels)

    def deltas(self, given: Sequence[float], pixels: int) -> tuple[float, ...]:
        """The thresholds that were given, or the default ones."""
        for value in given:
            require_positive(deltas=value)
        if len(set(given)) < len(given):
            raise BadInput("the thresholds δ name one twice: every image would count twice there")
        scale = math.sqrt(pixels) if self.name == "l2" else 1.0
        return tuple(given) or tuple(round(scale * d, 4) for d in self.grid)


_RMS = (0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.17, 0.2, 0.25, 0.3)
DISTANCES = {
    "rms": Distance("rms", "δ: root-mean-square error of a pixel", _RMS),
    "l2": Distance("l2", "δ: L2 distance over all pixels", _RMS),
    "psnr": Distance(
        "psnr", "t: PSNR of at least t (dB)", (10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0, 24.0, 27.0, 30.0)
    ),
    "ssim": Distance("ssim", "δ: 1 − SSIM", (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)),
}


def from_model(
    observed: Observation, model: str, beliefs: Mapping[str, Any] | None = None, seed: int = 0
) -> Observation:
    """The same client, with x, y and g drawn from the model: the adversary's belief is then the truth.

    The truth has random numbers of its own: an inference with the same seed must not begin where it lies.

    Raises:
        BadInput: the model has a `pyro.factor`: it is a density that cannot be drawn from; or the seed is negative.
    """
    if seed < 0:
        raise BadInput(f"a draw from the model needs a seed of at least 0, not {seed}: raise the seed or the index")
    bound = believe(programs.load("models", model), observed, beliefs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1)[0]))
        nodes = poutine.trace(bound).get_trace(observed.client, observed.batch_size).nodes
    factors = [n for n, node in nodes.items() if node["type"] == "sample" and isinstance(node["fn"], Unit)]
    if factors:
        raise BadInput(f"draws from the model: {model} cannot be drawn from, it is known only up to its factor "
                       f"'{factors[0]}': take a proper prior (gmrf for tv), or real data")  # fmt: skip
    labels = None if observed.labels is None else nodes["y"]["value"]
    latents = {n: v["value"] for n, v in nodes.items() if v["type"] == "sample" and not v["is_observed"]}
    provenance = {**observed.provenance, "drawn_from": model}
    return replace(
        observed,
        g=nodes["g"]["value"],
        labels=labels,
        truth=nodes["x"]["value"],
        latents=latents,
        provenance=provenance,
    )


def score(posterior: Posterior, distance: Distance, deltas: Sequence[float]) -> list[Row]:
    """Every decision of a posterior at every δ, against its truth: a row each, without index and inference.

    A point has one decision, its `mode`, and claims nothing.
    """
    truth = posterior.truth
    if truth is None:
        raise BadInput("the risk of a reconstruction needs the true image")
    pixels = math.prod(truth.shape[1:])
    held = None
    made: dict[str, Callable[[float], np.ndarray]] = {"mode": lambda delta: posterior.mode}
    if posterior.kind != "point":
        parts = decisions.split(_aligned(_thinned(posterior.draws, MOST), posterior.mode))
        held = _thinned(parts.score, MOST // 10) if distance.name == "ssim" else parts.score
        mean, medoid = parts.fit.mean(0), decisions.medoid(parts.fit)
        made = {"mean": lambda delta: mean, "medoid": lambda delta: medoid, **made}
        if distance.name != "ssim":
            made["ball"] = lambda delta: decisions.ball(parts, posterior.mode, distance.radius(delta, pixels) or 0)
    rows: list[Row] = []
    for name, decide in made.items():
        for k, delta in enumerate(deltas):
            if k == 0 or name == "ball":  # the others do not depend on δ
                x = decide(delta)
                true, drawn = distance(x, truth[None])[0], None if held is None else distance(x, held)
            if np.isnan(true).any():
                why = "the attack gives no finite image: give it another seed, or smaller steps"
                if distance.name == "ssim":
                    why = "SSIM needs images of at least 3x3 pixels: choose the distance rms"
                raise BadInput(f"a distance is not a number: {why}")
            for b, value in enumerate(true):
                claimed = None if drawn is None else float(distance.within(drawn[:, b], delta).mean())
                rows.append({"example": b, "decision": name, "delta": delta, "claimed": claimed,
                             "distance": float(value), "success": int(distance.within(value, delta)),
                             "converged": posterior.converged})  # fmt: skip
    return rows


def _thinned(draws: np.ndarray, most: int) -> np.ndarray:
    return draws[np.linspace(0, len(draws) - 1, most).astype(int)] if len(draws) > most else draws


def _aligned(draws: np.ndarray, mode: np.ndarray) -> np.ndarray:
    """Every draw with its examples in the order of the mode's: a gradient does not say which is which."""
    return draws if len(mode) == 1 else np.stack([d[metrics.match(d, mode)] for d in draws])


def interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a probability that came true `hits` times of `count` (Clopper & Pearson 1934)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(0.95, "exact")
    return float(interval.low), float(interval.high)


def curves(rows: Sequence[Row]) -> list[Row]:
    """A row for each inference, decision and δ: images, claimed and its standard error, realised and its 95 %
    Clopper-Pearson interval, and whether claimed lies inside it (None where nothing is claimed)."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for r in rows:
        groups.setdefault((r["inference"], r["decision"], r["delta"]), []).append(r)
    made: list[Row] = []
    for (inference, decision, delta), mine in groups.items():
        hits = sum(r["success"] for r in mine)
        low, high = interval(hits, len(mine))
        claims = np.array([r["claimed"] for r in mine if r["claimed"] is not None])
        claimed = float(claims.mean()) if len(claims) else None
        made.append({
            "inference": inference, "decision": decision, "delta": delta, "images": len(mine),
            "claimed": claimed,
            "claimed_se": float(claims.std(ddof=1)) / math.sqrt(len(claims)) if len(claims) > 1 else None,
            "realised": hits / len(mine), "low": low, "high": high,
            "agrees": None if claimed is None else low <= claimed <= high,
        })  # fmt: skip
    return made


# -- files -----------------------------------------------------------------------------------------------------------


def images(out: Path) -> Rows:
    """The table of every image, decision and δ, that a run goes on from: an attack's rows are added together."""
    return Rows(out / "risk_images.csv", COLUMNS, ("index", "inference"))


def write(
    rows: Sequence[Row], settings: Mapping[str, Any], out: Path, indices: Container[int] | None = None, **more: Any
) -> None:
    """risk.csv (the curves) and risk.json (the curves, what was run, and `more`).

    Args:
        indices: the images that the curves are of (all, where it is None).
    """
    drawn = curves([r for r in rows if indices is None or r["index"] in indices])
    runs.json(out / "risk.json", {"settings": dict(settings), "curves": drawn, **more})
    runs.table(out / "risk.csv", drawn, list(drawn[0]))
