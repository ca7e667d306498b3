"""One truth drawn from the model, and where it lies in the posterior computed for it: ranks, intervals, errors.

Draws of a Markov chain are thinned to L = min(99, ESS) evenly spaced ones, the ESS being the smallest over pixels and
log-density: about independent. Intervals, mean and variance take all draws.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pplleak import programs, reading, runs
from pplleak.density import Density, Model, Site, build, marginal
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, diagnostics, metrics
from pplleak.posterior.posterior import CHAINS
from pplleak.studies.attack.attack import attack, believe
from pplleak.studies.risk import risk

LEVELS = (0.5, 0.8, 0.9, 0.95)
MOST = 99  # ranked draws: 100 places for the truth
QUANTITIES = {
    "log_likelihood": "log p(g | x)",
    "log_prior": "log p(x)",
    "mean_intensity": "mean intensity",
    "distance_to_mean": "distance to the posterior mean",
    "distance_to_reference": "distance to a random image (TARP)",
}
KINDS = {"ranks": int, "ranked": int, "converged": bool}  # of a draw's arrays; the others are floats
TWINS = {"": (1.0, 0.0), "narrow": (0.75, 0.0), "shifted": (1.0, 0.25)}  # factor of the sd, shift of the mean in sds


@dataclass(frozen=True, eq=False)
class Draw:
    """Where one truth lies in the posterior that was computed for its gradient.

    ranks     (twin, quantity) of the truth among `ranked` draws; quantities: all pixels, then QUANTITIES; −1: not known
    inside    (twin, level) fraction of pixels inside their central interval
    expected  posterior variance of a pixel, and
    realised  squared error of the posterior mean, both averaged over pixels
    psnr_mean, rhat_max, ess_min, khat, converged: of the posterior, NaN where it has none
    seconds   of processor time that the attack took, all threads together: on one thread, its CPU seconds
    """

    ranks: np.ndarray
    ranked: int
    inside: np.ndarray
    expected: float
    realised: float
    psnr_mean: float
    rhat_max: float
    ess_min: float
    khat: float
    converged: bool
    seconds: float

    def save(self, path: Path) -> None:
        """An .npz file; it appears whole or not at all."""

        def pack(part: Path) -> None:
            with open(part, "wb") as f:  # a name without .npz would be given one
                np.savez(f, **{n.name: getattr(self, n.name) for n in dataclasses.fields(self)})

        runs.write(path, pack)

    @staticmethod
    def load(path: Path) -> Draw:
        """Raises BadInput for a file that `save` did not write."""
        kinds = {f.name: KINDS.get(f.name, float) for f in dataclasses.fields(Draw)}
        try:
            values: dict[str, Any] = reading.arrays(path, kinds)
            _require_whole(values)
        except BadInput as error:
            raise BadInput(f"{path} is not a draw of `pplleak calibrate`: {error}; delete it") from error
        return Draw(**{n: v if v.ndim else v.item() for n, v in values.items()})


def _require_whole(values: Mapping[str, np.ndarray]) -> None:
    """Raise BadInput for arrays of other shapes or ranges than a draw's."""
    ranks, inside = values["ranks"], values["inside"]
    plain = all(v.ndim == 0 for n, v in values.items() if n not in ("ranks", "inside"))
    if not plain or ranks.ndim != 2 or len(ranks) != len(TWINS) or inside.shape != (len(TWINS), len(LEVELS)):
        raise BadInput("its arrays have other shapes than a draw's")
    if ranks.shape[1] <= len(QUANTITIES) or not 0 < values["ranked"] <= MOST:
        raise BadInput("its arrays have other shapes than a draw's")
    if ranks.min() < -1 or ranks.max() > values["ranked"] or not ((inside >= 0) & (inside <= 1)).all():
        raise BadInput("it holds ranks or fractions that cannot be")


def make(
    base: Observation,
    model: str,
    inference: str,
    number: int,
    *,
    beliefs: Mapping[str, Any] | None = None,
    adversary: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Draw:
    """Draw a truth from the model, attack its gradient and rank the truth. It depends on `number` and `seed` alone.

    Args:
        base: the client, and what is known of it; its own observation is not looked at.
        beliefs: what the truth is drawn with. adversary: what the adversary believes instead.
        settings: of the inference.

    Raises:
        KeyboardInterrupt: the attack was interrupted: half a posterior is not what the inference gives.
    """
    program, believed = programs.load("models", model), {**(beliefs or {}), **(adversary or {})}
    observed = risk.from_model(base, model, beliefs, seed + 2 * number)
    other = risk.from_model(base, model, beliefs, seed + 2 * number + 1)
    assert other.truth is not None
    start = time.process_time()
    posterior = attack(observed, model, inference, beliefs=believed, settings=settings, seed=seed + number).whole()
    seconds = time.process_time() - start
    reference = other.truth.cpu().numpy()
    return measure(posterior, observed, believe(program, observed, believed), reference, seed + number, seconds)


def measure(
    posterior: Posterior, observed: Observation, model: Model, reference: np.ndarray, seed: int, seconds: float
) -> Draw:
    """Rank a truth in its posterior.

    Args:
        observed: drawn from the model (`pplleak.studies.risk.risk.from_model`), with its latents. model: what the
        adversary
            believes, beliefs bound. reference: x_ref, (batch, *input_shape).
        seed: of the order among equal values, where a pixel has any. seconds: what the attack took.

    Raises:
        BadInput: the posterior is a point.
    """
    if posterior.kind == "point":
        raise BadInput(f"{posterior.attrs.get('inference', 'this inference')} gives a point, without a posterior to "
                       "calibrate: take hmc, laplace or svi for example")  # fmt: skip
    assert observed.truth is not None and observed.latents is not None
    density = build(model, observed.client, observed)
    truth, labels = observed.truth.cpu().numpy(), observed.labels
    if density.exchangeable:  # in the order that the posterior's draws were put into, by the same rule
        shared = None if labels is None else labels.cpu().numpy()
        truth = diagnostics.relabelled(truth[None, None], np.zeros((1, 1, len(truth))), posterior.mode, shared)[0][0, 0]
    draws, mean, sd = posterior.draws, posterior.mean, posterior.sd
    picked = thinned(posterior)
    others = np.delete(np.arange(len(draws)), picked) if len(draws) > 2 * len(picked) else picked
    centre = draws[others].mean(0)  # of draws that are not ranked: those would lie nearer to a mean of their own
    lp = density(density.unconstrain({n: v[None] for n, v in observed.latents.items()})).item()
    generator = np.random.default_rng(seed)
    ends = np.quantile(draws, [(1 + s * level) / 2 for level in LEVELS for s in (-1, 1)], axis=0)
    ranks, inside = [], []
    for name, (factor, shift) in TWINS.items():
        x = np.concatenate([truth[None], mean + factor * (draws[picked] - mean) + shift * sd]).astype(truth.dtype)
        values = summaries(x, centre + shift * sd, reference, density)
        if posterior.latents:  # log p(g | x) is an integral over them
            del values["log_likelihood"]
        elif not name and "lp" in posterior.stats:
            log_density = np.r_[lp, posterior.stats["lp"].reshape(-1)[picked]]
            values["log_prior"] = log_density - values["log_likelihood"]
        known = [_ranks(values[q][:, None], generator)[0] if q in values else -1 for q in QUANTITIES]
        ranks.append(np.r_[_ranks(x.reshape(len(x), -1), generator), known])
        moved = mean + factor * (ends - mean) + shift * sd
        inside.append(((moved[0::2] <= truth) & (truth <= moved[1::2])).reshape(len(LEVELS), -1).mean(1))
    return Draw(
        ranks=np.stack(ranks).astype(np.int16),
        ranked=len(picked),
        inside=np.stack(inside),
        expected=float((sd.astype(np.float64) ** 2).mean()),
        realised=float(((mean - truth).astype(np.float64) ** 2).mean()),
        psnr_mean=float(metrics.psnr(mean, truth).mean()),
        rhat_max=_number(posterior.rhat_max),
        ess_min=_number(posterior.ess_min),
        khat=_number(posterior.khat),
        converged=posterior.converged,
        seconds=seconds,
    )


def thinned(posterior: Posterior) -> np.ndarray:
    """Which of a posterior's draws are ranked: evenly spaced, and no more than its chains are worth."""
    count = len(posterior.draws)
    worth = count if posterior.kind not in CHAINS or posterior.ess_min is None else posterior.ess_min
    return np.linspace(0, count - 1, max(1, min(MOST, count, int(worth)))).round().astype(int)


def summaries(x: np.ndarray, centre: np.ndarray, reference: np.ndarray, density: Density) -> dict[str, np.ndarray]:
    """The numbers of QUANTITIES that are functions of images x (N, batch, *input_shape) alone, each (N,)."""

    def distance(to: np.ndarray) -> np.ndarray:
        return np.sqrt(((x - to).reshape(len(x), -1).astype(np.float64) ** 2).sum(1))

    return {
        "log_likelihood": log_likelihood(density, torch.from_numpy(x).to(density.client.device)).cpu().numpy(),
        "mean_intensity": x.reshape(len(x), -1).astype(np.float64).mean(1),
        "distance_to_mean": distance(centre),
        "distance_to_reference": distance(reference),
    }


@torch.no_grad()
def log_likelihood(density: Density, x: Tensor) -> Tensor:
    """log p(g | x), unknown labels summed out, for images x (N, batch, *input_shape); (N,), float64.

    The model is run with x put in its place, whatever it would have computed it from. −∞ where labels are summed over
    and the model's x cannot lie there.
    """
    shape, dim = x.shape[1:], x[0].numel()
    site = Site("x", shape, shape, biject_to(constraints.real), slice(0, dim))
    with torch.random.fork_rng(devices=[]):  # what x would have come from is drawn, and not looked at
        prior, likelihood = replace(density, sites=(site,)).terms(x.to(density.client.dtype).flatten(1))
    if prior.dim() == 1:
        return likelihood
    return torch.nan_to_num(marginal(prior, likelihood) - marginal(prior, likelihood, 0.0), nan=-math.inf)


def _ranks(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Ranks of the first row among the others, each column for itself; among equals at random."""
    below, equal = (values[1:] < values[0]).sum(0), (values[1:] == values[0]).sum(0)
    return below + generator.integers(0, equal + 1)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
