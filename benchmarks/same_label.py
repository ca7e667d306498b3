"""What a batch of one class hides: repeated labels (Li et al. 2024, Eloul et al. 2024) against who knows the batch.

    uv run benchmarks/same_label.py

Batches of k digits of one class, and of k different classes; the default network at initial weights, the cross entropy
and the squared error (Eloul et al. choose the loss, too), noise σ on the gradient, labels known. Inverting Gradients,
which the papers' attacks go back to, and the Bayes adversary's MAP, each with the batch's size; PSNR a batch, every
image beside the one that it is. `linearised` is the PSNR of the linearised Bayes error tr (K⁻¹ + I)⁻¹ at the truth:
what is there to be found, where the search would find it.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from pplleak import channels, data, runs
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, client_of
from pplleak.posterior import metrics
from pplleak.priors.gaussian import fit_gaussian
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack
from pplleak.studies.bits import measures
from pplleak.studies.risk import bounds

COLUMNS = {"loss": str, "sigma": float, "size": int, "labels": str, "batch": int, "inverting_gradients": float,
           "optimal": float, "linearised": float, "converged": bool}  # fmt: skip
CELL = ("loss", "sigma", "size", "labels")
SEARCH: dict[str, dict[str, Any]] = {"inverting_gradients": {"steps": 300}, "optimal": {"steps": 300, "starts": 4}}


@dataclasses.dataclass(frozen=True)
class Settings:
    batches: int = 5
    sizes: tuple[int, ...] = (2, 4)
    sigmas: tuple[float, ...] = (1e-3, 1e-5)
    losses: tuple[str, ...] = ("cross_entropy", "mse")
    out: Path = Path("benchmarks/results")


def batch(labels: str, size: int, number: int) -> tuple[Tensor, Tensor]:
    """Private digits of one class, or of as many as there are images; drawn by the batch's number."""
    digits, generator = data.private("digits"), np.random.default_rng(number)
    classes = generator.permutation(10)[:size] if labels == "different" else np.repeat(generator.integers(10), size)
    picks: list[int] = []
    for k in classes:
        picks.append(int(generator.choice([i for i in (digits.y == int(k)).nonzero().flatten().tolist()
                                           if i not in picks])))  # fmt: skip
    return digits.x[picks], digits.y[picks]


def measure(loss: str, sigma: float, size: int, labels: str, number: int) -> dict[str, Any]:
    client, public = client_of(Scenario("digits", loss=loss, network=Named("mlp"))), data.public("digits").x
    x, y = batch(labels, size, number)
    torch.manual_seed(number)
    protection = Protection.parse(f"gaussian:sigma={sigma}")
    observed = Observation(protection.share(client, x, y), size, y, client, protection.filled(), public, x)
    prior = fit_gaussian(public)
    information = bounds.fisher_of(client, lambda u: channels.Gaussian(u, sigma), x, y)
    left = measures.linearised(information, torch.block_diag(*[prior.factor @ prior.factor.mT] * size))
    row: dict[str, Any] = {"loss": loss, "sigma": sigma, "size": size, "labels": labels, "batch": number,
                           "linearised": -10 * math.log10(left / x.numel())}  # fmt: skip
    for model, effort in SEARCH.items():
        posterior, truth = attack(observed, model, "map", settings=effort, seed=number), x.numpy()
        found = posterior.mode[metrics.match(posterior.mode, truth)]
        row |= {model: float(metrics.psnr(found, truth).mean()), "converged": posterior.converged}
    return row


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    table = runs.Rows(args.out / "same_label.csv", COLUMNS, (*CELL, "batch"))
    cases = [(loss, sigma, size, labels, n) for n in range(args.batches) for loss in args.losses
             for sigma in args.sigmas for size in args.sizes for labels in ("same", "different")]  # fmt: skip
    done = {table.about(r) for r in table.read()}
    for k in bar("batches", len(cases)):
        if cases[k] not in done:
            table.add([measure(*cases[k])])
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for r in table.read():
        groups.setdefault(tuple(r[c] for c in CELL), []).append(r)
    for cell, rows in sorted(groups.items()):
        means = [f"{n} {np.mean([r[n] for r in rows]):5.1f}" for n in (*SEARCH, "linearised")]
        print(*cell, f"{len(rows)} batches", *means)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
