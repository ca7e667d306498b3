"""Which prior predicts images best? Held-out log-likelihood of each, on the same images.

    bits a dimension = −log₂ p(x) / d,   x in [0, 1]^d     (for pixels that are counted 0 … 255, 8 more)

A density of images that beats another's by many nats knows more of them before any gradient is seen, and the evidence
of a gradient follows it (`pplleak.studies.attack.averaging`). What a prior holds impossible has density 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pplleak import priors
from pplleak.errors import BadInput
from pplleak.progress import ProgressBar, silent
from pplleak.settings import Named

COLUMNS = {"prior": str, "images": int, "nats": float | None, "se": float | None, "bits_a_dimension": float | None,
           "ahead": float | None, "ahead_se": float | None, "impossible": int | None, "bound": bool,
           "seconds": float}  # fmt: skip
CPU = torch.device("cpu")
PART = 100  # images at a time: a bound of a VAE takes hundreds of particles for each


@dataclass(frozen=True, eq=False)
class Score:
    """What a prior says of held-out images.

    nats: log p(x) of each, (images,), float64; None: the prior has a density only up to a factor. bound: they lie below
    it (a VAE's, by importance sampling). drawn: images of it (count, *input_shape). seconds: of the fit, as far as it
    was not kept from before, and of the densities.
    """

    prior: Named
    nats: Tensor | None
    drawn: Tensor | None
    bound: bool
    seconds: float


@dataclass(frozen=True)
class _Images:
    """Whose prior it is: images of a shape, in float64 on the CPU."""

    input_shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    device: torch.device = CPU


def score(
    prior: Named,
    train: Tensor,
    held_out: Tensor,
    labels: Tensor | None = None,
    *,
    draws: int = 16,
    progress: ProgressBar = silent,
) -> Score:
    """A prior, fitted to the images `train` (N, *input_shape) with its settings, on those it has not seen.

    Args:
        labels: of the images `train`, (N,), for a prior of each class, which is judged by p(x), the classes summed out.

    Raises:
        BadInput: there is no such prior or setting, or it is one of a file, which may have seen the images.
    """
    priors.check(prior)
    if prior.settings.get("file"):
        raise BadInput(f"the prior {prior} comes from a file, and may have seen the images that it would be judged by: "
                       "leave its file out")  # fmt: skip
    start = time.perf_counter()
    made: Any = priors.make(prior, _Images(tuple(train.shape[1:])), train, labels)
    nats = drawn = None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a VAE's bound is drawn
        if hasattr(made, "log_prob"):
            pieces = held_out.double().split(PART)
            parts = [made.log_prob(pieces[k]).double() for k in progress(f"{prior}", len(pieces))]
            nats = torch.nan_to_num(torch.cat(parts), nan=-math.inf, neginf=-math.inf)
        if hasattr(made, "draw"):
            drawn = made.draw(draws)
    bound = nats is not None and getattr(made, "bound", False)
    return Score(prior, nats, drawn, bound, time.perf_counter() - start)


def row(found: Score, base: Tensor, pixels: int) -> dict[str, Any]:
    """The numbers of a score; base: the log-likelihoods of the prior that the others are compared with, (images,).

    ahead, ahead_se: by how many nats an image it beats that prior, paired, with its standard error.
    """
    nats = found.nats
    said: dict[str, Any] = {"prior": str(found.prior), "images": len(base), "seconds": found.seconds, "nats": None,
                            "se": None, "bits_a_dimension": None, "ahead": None, "ahead_se": None, "impossible": None,
                            "bound": found.bound}  # fmt: skip
    if nats is None:
        return said
    possible = nats.isfinite()
    said["impossible"] = int((~possible).sum())
    if not bool(possible.all()):  # a mean of −∞ says no more
        return said
    ahead = nats - base
    error = 1 / math.sqrt(len(nats))
    return said | {
        "nats": float(nats.mean()), "se": float(nats.std()) * error,
        "bits_a_dimension": -float(nats.mean()) / (pixels * math.log(2)),
        "ahead": float(ahead.mean()), "ahead_se": float(ahead.std()) * error,
    }  # fmt: skip


def best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, the highest log-likelihood first; those without one last."""
    return sorted(rows, key=lambda r: -math.inf if r["nats"] is None else float(r["nats"]), reverse=True)


def said(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """A row's log-likelihood, its bits a dimension and how far it is ahead, for people."""
    if row["impossible"] is None:
        return "density not known", "", ""
    if row["nats"] is None:
        return f"impossible: {row['impossible']} images", "", ""
    least = "at least " if row["bound"] else ""
    return (
        f"{least}{row['nats']:.1f} ± {row['se']:.1f}",
        f"{'at most ' if row['bound'] else ''}{row['bits_a_dimension']:.3f}",
        f"{row['ahead']:+.1f} ± {row['ahead_se']:.1f}",
    )
