"""What an accelerator adds: a thousand chains at once, and networks of photographs at their own size.

    uv run benchmarks/accelerator.py --data-root ../shared/data --device cuda

    mlp        one MNIST digit behind 784-256-10 GELU, σ .1, `hmc`
    mnist8     eight of them in one gradient, labels known
    cnn64      a CIFAR-10 image at 64 × 64 behind a GELU convnet with a stride-4 stem, σ a tenth of the gradient's rms
    resnet18   the same at `size` 32 and 224 behind torchvision's network (eval), σ a hundredth: a step of the MAP

    seconds            of the whole attack, all its preparations included
    rhat, ess, ess_per_s   the worst pixel's, the smallest, and that a second of the attack
    seconds_a_step     of a gradient of log p, a start of `--starts`, least of five; plain: by autograd alone, one start
    peak_mb            on the accelerator; of a processor it is left empty

A row that the CSV holds is replaced.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from networks import PUBLIC, Case, build, resized
from scaling import cnn, mlp
from torch import nn

from pplleak import data, runs
from pplleak.client import Client, seeded
from pplleak.density import build as posterior
from pplleak.federation.observation import Observation
from pplleak.federation.scenario import torch_device
from pplleak.inference import hmc
from pplleak.models import optimal

COLUMNS = {
    "case": str, "size": int, "device": str, "chains": int, "seconds": float | None, "rhat": float | None,
    "ess": float | None, "ess_per_s": float | None, "seconds_a_step": float | None, "plain": float | None,
    "peak_mb": float | None,
}  # fmt: skip
RESNET, RESNET_RATIO, CNN_RATIO = "resnet18", 0.01, 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path = Path("data")
    """Where MNIST/ and cifar10/ lie."""
    device: str = "auto"
    chains: int = 1024
    draws: int = 40
    """Of each chain: a thousand of them need few, and R-hat takes longer than the draws."""
    starts: int = 1
    """Of the MAP."""
    cases: tuple[str, ...] = ("mlp", "mnist8", "cnn64", "resnet18:32", "resnet18:224")
    csv: Path = Path("benchmarks/results/accelerator.csv")


def observed_as(case: str, size: int, args: Settings, device: torch.device) -> tuple[Observation, float]:
    """What the client shares, and σ."""
    name, batch = ("mnist", 8 if case == "mnist8" else 1) if size == 28 else ("cifar10", 1)
    images, public = data.private(name, args.data_root), data.public(name, args.data_root).x
    x, y = images.x[:batch], images.y[:batch]
    if name == "cifar10":
        x, public = resized(x, size), resized(public[torch.linspace(0, len(public) - 1, PUBLIC).long()], size)
    if case == RESNET:
        network: nn.Module = build(Case(RESNET, "eval", size, args.data_root), public)
    else:
        network = seeded(mlp if size == 28 else functools.partial(cnn, size), 0)
    client = Client(network.to(device), tuple(x.shape[1:]), 10)
    x, y = x.to(device), y.to(device)
    with torch.no_grad():
        u = client.update(x, y).materialise()
    ratio = RESNET_RATIO if case == RESNET else CNN_RATIO
    sigma = 0.1 if size == 28 else ratio * float(u.square().mean().sqrt())
    noise = sigma * torch.randn(len(u), generator=torch.Generator().manual_seed(1)).to(device)
    return Observation(client=client, g=u + noise, labels=y, batch_size=batch, truth=x, public=public), sigma


def least(call: Callable[[], Any], device: torch.device, rounds: int = 5) -> float:
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def measure(case: str, size: int, args: Settings, device: torch.device) -> dict[str, Any]:
    observed, sigma = observed_as(case, size, args, device)
    client = observed.client
    model = functools.partial(optimal.model, sigma=sigma, reference=observed.public)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"case": case, "size": size, "chains": args.chains}
    row["device"] = torch.cuda.get_device_name(device) if cuda else f"{platform.machine()}, 1 thread"
    if case == RESNET:
        density = posterior(model, client, observed)
        z = density.sample_prior(args.starts).to(device)
        row |= {"chains": args.starts, "seconds_a_step": least(lambda: density.value_and_grad(z), device) / args.starts}
        network = copy.deepcopy(client.network).requires_grad_()
        x, parameters = observed.truth[:1].clone().requires_grad_(), list(network.parameters())

        def plain() -> None:
            loss = F.cross_entropy(network(x), observed.labels)
            found = torch.autograd.grad(loss, parameters, create_graph=True)
            distance = (torch.cat([f.flatten() for f in found]) - observed.g).square().sum()
            torch.autograd.grad(distance, x)

        row["plain"] = least(plain, device)
    else:
        start = time.perf_counter()
        found = hmc.run(model, observed, client, chains=args.chains, draws=args.draws)
        seconds = time.perf_counter() - start
        row |= {"seconds": seconds, "rhat": found.rhat_max, "ess": found.ess_min,
                "ess_per_s": (found.ess_min or 0) / seconds}  # fmt: skip
    row["peak_mb"] = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else None
    return row


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    device = torch_device(args.device)
    rows = runs.Rows(args.csv, COLUMNS, ("case", "size", "device", "chains"))
    for named in args.cases:
        case, _, size = named.partition(":")
        made = measure(case, int(size or {"cnn64": 64}.get(case, 28)), args, device)
        rows.add([made])
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in made.items() if v is not None}
        print(", ".join(f"{k} {v}" for k, v in shown.items()), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
