"""What no adversary can do, beside what was realised: the bounds that apply to a risk curve.

The bounds are about images drawn from the model. On real images nobody knows p(x), and none of them applies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pplleak import channels, programs
from pplleak.density import Density, build
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.progress import ProgressBar, silent
from pplleak.studies.attack.attack import believe
from pplleak.studies.risk import bounds, rero
from pplleak.studies.risk.bounds import VanTrees
from pplleak.studies.risk.risk import Distance, Row, curves

GUESSES = 20_000  # prior draws behind κ
FISHER = 10  # draws behind the expected Fisher information


@dataclass(frozen=True)
class Limits:
    """van_trees: on the squared error, or None. success: δ -> the largest share of successes (ReRo); {} where there is
    none. guess: δ -> κ, the success of the best guess without g. notes: why a bound is missing, in plain words."""

    van_trees: VanTrees | None
    success: dict[float, float]
    guess: dict[float, float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        bound = None if self.van_trees is None else {
            "rms": self.van_trees.rms, "square": self.van_trees.square, "se": self.van_trees.se,
        }  # fmt: skip
        success = [{"delta": d, "limit": v, "kappa": self.guess[d]} for d, v in self.success.items()]
        return {"van_trees": bound, "rero": success, "notes": list(self.notes)}


def of_model(
    observed: Observation,
    model: str,
    beliefs: Mapping[str, Any] | None,
    distance: Distance,
    deltas: Sequence[float],
    progress: ProgressBar = silent,
    seed: int = 0,
) -> Limits:
    """The bounds for an observation drawn from the model of that name or path (`risk.from_model`)."""
    if observed.batch_size > 1:
        return Limits(None, {}, {}, ("bounds hold for examples in a fixed order: take batches of 1",))
    density = build(believe(programs.load("models", model), observed, beliefs), observed.client, observed)
    notes, van_trees = [], None
    try:
        van_trees = bounds.van_trees(density, FISHER, seed=seed, progress=progress)
    except BadInput as reason:
        notes.append(f"no bound on the error: {reason}")
    success, guess = _rero(density, distance, deltas, seed)
    return Limits(van_trees, success, guess, tuple(notes))


def _rero(
    density: Density, distance: Distance, deltas: Sequence[float], seed: int
) -> tuple[dict[float, float], dict[float, float]]:
    """ReRo at every δ, by the upper limit of κ; {} where the channel is not DP-SGD, or the distance not a ball's."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channel = density.trace({}, 1).nodes["g"]["fn"]
        pixels = math.prod(density.client.input_shape)
        if not isinstance(channel, channels.DPSGD) or distance.radius(deltas[0], pixels) is None:
            return {}, {}
        draws = torch.cat([density.images(part)[0][:, 0] for part in density.sample_prior(GUESSES).split(500)])
    success, guess = {}, {}
    for delta in deltas:
        mass = rero.prior_mass(draws.double().cpu().numpy(), distance.radius(delta, pixels) or 0)
        success[delta] = rero.gaussian(mass.upper, channel.settings["noise_multiplier"])
        guess[delta] = mass.value
    return success, guess


def realised_rms(rows: Sequence[Row], distance: Distance, pixels: int) -> dict[tuple[str, str], tuple[float, float]]:
    """(inference, decision) -> the root-mean-square error of a pixel over all images, and its standard error; {} for
    PSNR and SSIM, and without the decisions that change with δ."""
    scale = {"rms": 1.0, "l2": 1 / math.sqrt(pixels)}.get(distance.name)
    if scale is None:
        return {}
    seen: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for r in rows:
        if r["decision"] != "ball":
            seen.setdefault((r["inference"], r["decision"]), {})[r["index"], r["example"]] = scale * r["distance"]
    made = {}
    for pair, errors in seen.items():
        square = np.array([v**2 for v in errors.values()])
        rms = math.sqrt(square.mean())
        made[pair] = rms, float(square.std()) / math.sqrt(len(square)) / (2 * rms)
    return made


def sentences(limits: Limits, rows: Sequence[Row], distance: Distance) -> list[str]:
    """The bounds and the distance to them, a line each."""
    lines = list(limits.notes)
    if limits.van_trees is not None:
        least = limits.van_trees.rms
        lines.append(f"no adversary has a smaller RMS error than {least:.4f} (van Trees)")
        errors = realised_rms(rows, distance, limits.van_trees.pixels)
        if errors:
            (inference, decision), (best, se) = min(errors.items(), key=lambda item: item[1][0])
            lines[-1] += f"; the best here, {inference}'s {decision}: {best:.4f} ± {se:.4f}, {best / least - 1:+.0%}"
    if limits.success:
        points = curves(rows)
        gaps = {d: v - max(c["realised"] for c in points if c["delta"] == d) for d, v in limits.success.items()}
        delta = min(gaps, key=gaps.__getitem__)
        lines.append(f"ReRo: no adversary succeeds more often than the red line; the nearest, at δ = {delta:g}, lies "
                     f"{gaps[delta]:.0%} below")  # fmt: skip
    return lines
