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
from networks import Case, build
from scaling import least, shared

from pplleak import runs
from pplleak.density import build as posterior
from pplleak.federation.scenario import torch_device
from pplleak.inference import hmc
from pplleak.models import optimal

COLUMNS = {
    "case": str, "size": int, "device": str, "chains": int, "seconds": float | None, "rhat": float | None,
    "ess": float | None, "ess_per_s": float | None, "seconds_a_step": float | None, "plain": float | None,
    "peak_mb": float | None,
}  # fmt: skip
RESNET, RESNET_RATIO = "resnet18", 0.01


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


def measure(case: str, size: int, args: Settings, device: torch.device) -> dict[str, Any]:
    other = functools.partial(build, Case(RESNET, "eval", size, args.data_root)), RESNET_RATIO
    observed, sigma = shared(
        args.data_root, case, size, 8 if case == "mnist8" else 1, *(other if case == RESNET else ())
    )
    observed = observed.to(device)
    client = observed.client
    model = functools.partial(optimal.model, sigma=sigma, reference=observed.public)
    cuda = device.type == "cuda"

    def least_of(call: Callable[[], Any]) -> float:
        def ended() -> None:
            call()
            if cuda:
                torch.cuda.synchronize(device)

        return least(ended)

    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"case": case, "size": size, "chains": args.chains}
    row["device"] = torch.cuda.get_device_name(device) if cuda else f"{platform.machine()}, 1 thread"
    if case == RESNET:
        density = posterior(model, client, observed)
        z = density.sample_prior(args.starts).to(device)
        row |= {"chains": args.starts, "seconds_a_step": least_of(lambda: density.value_and_grad(z)) / args.starts}
        network = copy.deepcopy(client.network).requires_grad_()
        x, parameters = observed.truth[:1].clone().requires_grad_(), list(network.parameters())

        def plain() -> None:
            loss = F.cross_entropy(network(x), observed.labels)
            found = torch.autograd.grad(loss, parameters, create_graph=True)
            distance = (torch.cat([f.flatten() for f in found]) - observed.g).square().sum()
            torch.autograd.grad(distance, x)

        row["plain"] = least_of(plain)
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
