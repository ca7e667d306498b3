"""How the cost of a gradient of log p(z | g), and of `hmc`, grows with the image and the batch.

    uv run benchmarks/scaling.py --data-root ../shared/data

Smooth clients, one thread: CIFAR-10 images of several sizes behind a GELU convnet with a stride-4 stem, σ a tenth of
the gradient's rms, the Gaussian prior of 60 public images; and a batch of eight MNIST digits behind 784-256-10 GELU at
σ = 0.1. With `--sample`, `hmc` is run on the cases named there. A row that the CSV holds is not made again.

    seconds_a_gradient   of one chain, where `--chains` are computed together, least of five
    training_step        forward, backward and SGD of the same batch, least of five; ratio: the one in the other
    sampled              chains x draws of `hmc`, its other settings at their defaults; empty: not sampled
    rhat, ess_a_second, seconds   of those, all preparations included
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import torch
import torch.nn.functional as F
import tyro
from networks import PUBLIC, resized
from torch import Tensor, nn

from pplleak import data, runs
from pplleak.client import Client, seeded
from pplleak.density import build as posterior
from pplleak.federation.observation import Observation
from pplleak.inference import hmc
from pplleak.models import optimal
from pplleak.progress import bar

COLUMNS = {
    "case": str, "size": int, "batch": int, "latents": int, "parameters": int, "chains": int,
    "seconds_a_gradient": float, "training_step": float, "ratio": float, "sampled": str, "rhat": str,
    "ess_a_second": str, "seconds": str,
}  # fmt: skip

MNIST = ("mlp", "mnist8")  # cases; the others are of CIFAR-10
RATIO = 0.1  # σ in units of the gradient's rms entry, of CIFAR-10


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path = Path("data")
    """Where cifar10/ and MNIST/ lie."""
    sizes: tuple[int, ...] = (28, 64, 128, 224)
    chains: int = 8
    sample: tuple[str, ...] = ()
    """Cases that `hmc` is run on: mnist8, cnn64."""
    sampler_chains: int = 64
    """Of `hmc`; fewer take less time, and know R-hat less well."""
    sampler_draws: int = 250
    """Draws a chain."""
    csv: Path = Path("benchmarks/results/scaling.csv")

    @property
    def sampled(self) -> str:
        return f"{self.sampler_chains} x {self.sampler_draws}"


def cnn(size: int) -> nn.Module:
    """Conv(3, 16, 5, stride 4)-Conv(16, 32, 3, stride 2)-Dense(10), GELU between them."""
    rest = math.ceil(math.ceil(size / 4) / 2)
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4, padding=2), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU(),
        nn.Flatten(), nn.Linear(32 * rest * rest, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.GELU(), nn.Linear(256, 10))


def least(call: Callable[[], Any], rounds: int = 5) -> float:
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def shared(
    root: Path, case: str, size: int, batch: int, network: Callable[[Tensor], nn.Module] | None = None,
    ratio: float = RATIO,
) -> tuple[Observation, float]:  # fmt: skip
    """What the client of a case shares, and σ; network: of public images -> another one than the case's."""
    name = "mnist" if case in MNIST else "cifar10"
    images, public = data.private(name, root), data.public(name, root).x
    x, y = images.x[:batch], images.y[:batch]
    if name == "cifar10":
        x, public = resized(x, size), resized(public[torch.linspace(0, len(public) - 1, PUBLIC).long()], size)
    made = network(public) if network else seeded(mlp if name == "mnist" else functools.partial(cnn, size), 0)
    client = Client(made, tuple(x.shape[1:]), 10)
    with torch.no_grad():
        u = client.update(x, y).materialise()
    sigma = 0.1 if name == "mnist" else ratio * float(u.square().mean().sqrt())
    g = u + sigma * torch.randn(len(u), generator=torch.Generator().manual_seed(1))
    return Observation(client=client, g=g, labels=y, batch_size=batch, truth=x, public=public), sigma


def measure(args: Settings, case: str, size: int, batch: int) -> dict[str, Any]:
    """One row."""
    observed, sigma = shared(args.data_root, case, size, batch)
    client, x, y, public = observed.client, observed.truth, observed.labels, observed.public
    assert x is not None and y is not None
    believed = functools.partial(optimal.model, sigma=sigma, reference=public)
    density = posterior(believed, client, observed)
    pyro.set_rng_seed(0)
    z = density.sample_prior(args.chains)
    gradient = least(lambda: density.value_and_grad(z)) / args.chains
    network = seeded(mlp if case in MNIST else functools.partial(cnn, size), 0)
    sgd = torch.optim.SGD(network.parameters(), lr=0.0)

    def step() -> None:
        sgd.zero_grad()
        F.cross_entropy(network(x), y).backward()
        sgd.step()

    row: dict[str, Any] = {
        "case": case, "size": size, "batch": batch, "latents": density.dim, "parameters": client.update_size,
        "chains": args.chains, "seconds_a_gradient": gradient, "training_step": (own := least(step)),
        "ratio": gradient / own, "sampled": "", "rhat": "", "ess_a_second": "",
        "seconds": "",
    }  # fmt: skip
    if case in args.sample:
        start = time.perf_counter()
        found = hmc.run(believed, observed, client, chains=args.sampler_chains, draws=args.sampler_draws, progress=bar)
        seconds = time.perf_counter() - start
        draws = found.x.reshape(*found.x.shape[:2], -1).astype(np.float64)
        draws = draws[..., :: max(1, draws.shape[2] // 512)]  # of many pixels, 512 spread evenly
        rhat, ess = float(np.nanmax(arviz.rhat(draws))), float(np.nanmin(arviz.ess(draws)))
        row |= {
            "sampled": args.sampled,
            "rhat": f"{rhat:.4f}",
            "ess_a_second": f"{ess / seconds:.3g}",
            "seconds": f"{seconds:.0f}",
        }
    return row


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    table = runs.Rows(args.csv, COLUMNS, ("case", "size", "batch"))
    done = {table.about(r) for r in table.read() if r["sampled"] == args.sampled or r["case"] not in args.sample}
    wanted = [("mnist8", 28, 8), *((f"cnn{size}", size, 1) for size in args.sizes)]
    for job in wanted:
        if job in done:
            continue
        row = measure(args, *job)
        table.add([row])
        print(", ".join(f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in row.items()), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
