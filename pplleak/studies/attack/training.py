"""What the server does not know of a client's local training, weighed by evidence.

    p(training | g) ∝ p(g | training),   log p(g | training) by Laplace (`evidence`)

over stated small sets, all of one probability before: 1, 2, 3 or 5 epochs; local batches of 1, 2, 4, … and all
examples; what is shared of the movement. A learning rate that is not known is a latent, log-normal around the one that
was stated, log(η / η_0) ~ Normal(0, 2²). The attack goes on with the likeliest, and says what else was likely: it does
not average over them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch

from pplleak.client import extended
from pplleak.client.training import LocalTraining, Shares
from pplleak.density import Model
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.posterior.fit_words import P
from pplleak.progress import ProgressBar, silent
from pplleak.studies.attack.evidence import Altered, Alternative, evidence, free_rate

Unknown = Literal["epochs", "batch_size", "lr", "shares"]
EPOCHS = (1, 2, 3, 5)
MOST = 64  # trainings that are tried: each takes a short search


@dataclass(frozen=True)
class Tried:
    """A training that may have been, its share p(training | g) of those that were tried, and whether it explains g."""

    training: LocalTraining
    weight: float
    fits: bool

    def to_json(self) -> dict[str, Any]:
        return {"local": self.training.to_json(), "weight": self.weight, "fits": self.fits}


def candidates(known: LocalTraining, unknown: Sequence[Unknown], examples: int) -> list[LocalTraining]:
    """Every training of a client with so many examples that differs from `known` in what is not known.

    Raises:
        BadInput: a name that is none of `Unknown`, or too many trainings.
    """
    if strange := [n for n in unknown if n not in get_args(Unknown)]:
        raise BadInput(f"'{strange[0]}' of local training cannot be left open: {', '.join(get_args(Unknown))} can")
    ways: dict[str, Sequence[Any]] = {}
    if "epochs" in unknown:
        ways["epochs"] = EPOCHS
    if "batch_size" in unknown:
        ways["batch_size"] = [*(2**k for k in range(examples.bit_length()) if 2**k < examples), None]
    if "shares" in unknown:
        ways["shares"] = get_args(Shares)
    made = []
    for values in itertools.product(*ways.values()):
        chosen = dict(zip(ways, values, strict=True))
        if "epochs" in chosen or known.epochs is not None:
            chosen.setdefault("epochs", known.epochs)
            chosen["steps"] = 1
        elif chosen.get("batch_size", known.batch_size) is None and known.shuffle:
            continue
        size = chosen.get("batch_size", known.batch_size)
        chosen["shuffle"] = known.shuffle and size is not None and size < examples
        made.append(replace(known, **chosen))
    if len(made) > MOST:
        raise BadInput(f"{len(made)} local trainings to try, more than {MOST}: say one of {', '.join(ways)}")
    return made


def weigh(
    model: Model, observed: Observation, unknown: Sequence[Unknown], progress: ProgressBar = silent
) -> list[Tried]:
    """The trainings that may be behind an observation, the likeliest first; a rate that is not known is that of its
    mode.

    Args:
        model: with its beliefs bound. observed: its client says what is known of the training.

    Draws by generators of its own; torch's stays as it was.

    Raises:
        BadInput: the client does not train locally, or none of the trainings can be tried.
    """
    client = observed.client
    if client.local is None:
        raise BadInput("the client shares a gradient, and nothing of local training is open: say its learning rate")
    found = []
    with torch.random.fork_rng(devices=[]):
        tried = candidates(client.local, unknown, observed.batch_size)
        for k in progress("local trainings", len(tried)):
            torch.manual_seed(0)  # the same starts for each
            other = replace(client, local=tried[k])
            if "lr" in unknown:
                other = extended(Altered, other, rate=free_rate)
            each = Alternative("", "", model, other, replace(observed, client=other))
            try:
                seen = evidence(each)
            except (BadInput, RuntimeError, ValueError):  # one that this client cannot have
                continue
            factor = float(seen.values["log_rate"].reshape(-1)[0].exp()) if "lr" in unknown else 1.0
            found.append((replace(tried[k], lr=tried[k].lr * factor), seen.log, seen.p))
    if not found:
        raise BadInput("none of the local trainings can be tried on this observation: say more of the training")
    log = np.array([value for _, value, _ in found])
    weights = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    made = [Tried(t, float(w), p >= P) for (t, _, p), w in zip(found, weights, strict=True)]
    return sorted(made, key=lambda t: -t.weight)


def told(
    model: Model, observed: Observation, unknown: Sequence[Unknown], progress: ProgressBar = silent
) -> tuple[Observation, str]:
    """The observation of a client with the likeliest training, and what is said of it; arguments as for `weigh`."""
    tried = weigh(model, observed, unknown, progress)
    best, words = tried[0], words_of(tried[0].training, unknown)
    rest = ", ".join(f"{words_of(t.training, unknown)} ({t.weight:.2g})" for t in tried[1:4])
    share = f"probability {best.weight:.2g}; next: {rest or 'none'}"
    said = f"local training, the likeliest of {len(tried)}: {words} ({share})"
    said += "" if best.fits else "; none of them explains the gradient"
    kept = {"local": best.training.to_json(), "trainings": [t.to_json() for t in tried[:10]]}
    provenance = {**observed.provenance, **kept}
    return replace(observed, client=replace(observed.client, local=best.training), provenance=provenance), said


def words_of(training: LocalTraining, unknown: Sequence[Unknown]) -> str:
    """What was open of a training, as it is in this one."""
    parts = {"epochs": f"{training.epochs} epochs", "batch_size": f"batches of {training.batch_size or 'all'}",
             "lr": f"rate {training.lr:.3g}", "shares": training.shares}  # fmt: skip
    return ", ".join(parts[n] for n in get_args(Unknown) if n in unknown)
