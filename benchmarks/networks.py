"""Which of torchvision's networks can be attacked, at which size, how fast and in how much memory?

    uv run benchmarks/networks.py --data-root ../shared/data

One CIFAR-10 image, enlarged, behind each network with random weights; σ is a hundredth of the gradient's rms entry. The
running statistics of BatchNorm are those of 32 public images. In `train` mode BatchNorm takes the statistics of the
client's own batch of four, dropout is off. A row is one process of its own:

    path             how the update is computed (`Client.path`)
    max_error        largest entry of |u − ∇θ ℓ| at the truth, in that of |∇θ ℓ|: against plain autograd, float32
    seconds_a_step   of the MAP from one start, beside the same of a plain attack: Adam on the pixels against
                     ‖∇θ ℓ − g‖², differentiated twice by autograd, from the same image
    psnr             of the MAP after `steps`, beside that of the plain attack
    peak_mb          of the whole process, torch and 60 public images included
    error            in one line, where it could not be attacked; plain_error: where the plain attack could not

A row that the CSV holds is not run again.
"""

from __future__ import annotations

import dataclasses
import functools
import resource
import time
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.nn.functional as F
import torchvision
import tyro
from torch import Tensor, nn

from pplleak import data, runs
from pplleak.client import Client
from pplleak.density import build as posterior
from pplleak.density.search import maximise
from pplleak.federation.observation import Observation
from pplleak.models import optimal
from pplleak.posterior.metrics import psnr
from pplleak.progress import bar

COLUMNS = {
    "network": str, "mode": str, "size": int, "batch": int, "parameters": int, "path": str, "max_error": float,
    "steps": int, "seconds_a_step": float, "plain_seconds_a_step": float, "psnr": float, "plain_psnr": float,
    "peak_mb": float, "error": str, "plain_error": str,
}  # fmt: skip
NETWORKS = (
    "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small",
    "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "densenet121", "regnet_x_400mf",
    "regnet_y_400mf", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet1_0", "googlenet", "vgg11_bn", "vit_b_16",
    "swin_t",
)  # fmt: skip
LARGE = ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "densenet121", "vit_b_16")
STEPS = {"eval": {32: 40, 64: 8, 224: 3}, "train": {32: 10, 64: 5, 224: 3}}
PUBLIC, BATCH, RATIO = 60, 4, 0.01  # public images; examples in train mode; σ in units of the gradient's rms entry


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path = Path("data")
    """Where cifar10/ lies."""
    sizes: tuple[int, ...] = (32, 64, 224)
    modes: tuple[str, ...] = ("eval", "train")
    csv: Path = Path("benchmarks/results/networks.csv")


@dataclasses.dataclass(frozen=True)
class Case:
    network: str
    mode: str
    size: int
    root: Path


def build(case: Case, images: Tensor) -> nn.Module:
    """The network with random weights, and with statistics of public images."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_classes": 10}
    if case.network == "vit_b_16":
        settings["image_size"] = case.size
    if case.network == "googlenet":
        settings |= {"aux_logits": False, "init_weights": False}
    network: nn.Module = getattr(torchvision.models, case.network)(**settings)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        network(images[:32])
    return network.eval() if case.mode == "eval" else network


def resized(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else F.interpolate(x, size=(size, size), mode="bicubic").clamp(0, 1)


def attack(case: Case) -> dict[str, Any]:
    """One row."""
    public = data.public("cifar10", case.root).x
    public = resized(public[torch.linspace(0, len(public) - 1, PUBLIC).long()], case.size)
    images = data.private("cifar10", case.root)
    batch = BATCH if case.mode == "train" else 1
    picks = [int((images.y == k).nonzero()[0]) for k in range(batch)]  # a class each: the labels tell them apart
    x, y = resized(images.x[picks], case.size), images.y[picks]
    network = build(case, public)
    client = Client(network, tuple(x.shape[1:]), 10)
    parameters = [network.get_parameter(n) for n in client.layers]

    def plain(x: Tensor, create_graph: bool = False) -> list[Tensor]:
        loss = F.cross_entropy(network(x), y)
        return list(torch.autograd.grad(loss, parameters, create_graph=create_graph))

    expected = torch.cat([g.flatten() for g in plain(x)])
    with torch.no_grad():
        error = float((client.update(x, y).materialise() - expected).abs().max() / expected.abs().max())
    sigma = RATIO * float(expected.double().square().mean().sqrt())
    g = expected + sigma * torch.randn(len(expected), generator=torch.Generator().manual_seed(1))
    observed = Observation(client=client, g=g, labels=y, batch_size=batch, truth=x)
    believed = functools.partial(optimal.model, sigma=sigma, reference=public)
    density = posterior(believed, client, observed)
    pyro.set_rng_seed(0)
    begin, steps = density.sample_prior(1), STEPS[case.mode][case.size]
    density.value_and_grad(begin)
    start = time.perf_counter()
    found = maximise(density, begin=begin, steps=steps)
    ours = (time.perf_counter() - start) / (steps + 1)
    of_map = density.images(found.z)[0][0]

    def peer() -> tuple[float, float]:
        """Seconds a step of the plain attack from the same image, and its PSNR."""
        guess, parts = density.images(begin)[0][0].clone().requires_grad_(), client.split(g)
        adam, best, kept = torch.optim.Adam([guess], lr=0.05), float("inf"), guess.detach().clone()
        start = time.perf_counter()
        for _ in range(steps + 1):
            adam.zero_grad()
            off = sum((a - b).square().sum() for a, b in zip(plain(guess, True), parts.values(), strict=True))
            assert isinstance(off, Tensor)
            if float(off.detach()) < best:
                best, kept = float(off.detach()), guess.detach().clone()
            (guess.grad,) = torch.autograd.grad(off, guess)
            adam.step()
        seconds = (time.perf_counter() - start) / (steps + 1)
        return seconds, float(psnr(kept.clamp(0, 1).numpy(), x.numpy()).mean())

    try:
        (theirs, found_by_plain), why = peer(), ""
    except RuntimeError as refusal:  # kernels that torch cannot differentiate twice
        (theirs, found_by_plain), why = (float("nan"), float("nan")), str(refusal).splitlines()[0][:200]
    return {
        "batch": batch, "parameters": client.update_size, "path": client.path, "max_error": error, "steps": steps,
        "seconds_a_step": ours, "plain_seconds_a_step": theirs, "psnr": float(psnr(of_map.numpy(), x.numpy()).mean()),
        "plain_psnr": found_by_plain, "error": "", "plain_error": why,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def row(case: Case) -> dict[str, Any]:
    """A case in a process of its own."""
    try:
        with runs.processes(1) as executor:
            (measured,) = runs.spread(attack, [case], executor)
    except Exception as error:  # the row says that it does not run
        nothing = {n: float("nan") if kind is float else 0 if kind is int else "" for n, kind in COLUMNS.items()}
        measured = {**nothing, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return {**measured, "network": case.network, "mode": case.mode, "size": case.size}


def has_batch_norm(name: str) -> bool:
    return name not in ("convnext_tiny", "squeezenet1_1", "vit_b_16", "swin_t")


def main(args: Settings) -> None:
    table = runs.Rows(args.csv, COLUMNS, ("network", "mode", "size"))
    done = {table.about(r) for r in table.read()}
    wanted = [
        Case(name, mode, size, args.data_root)
        for size in args.sizes
        for mode in args.modes
        for name in (LARGE if size == 224 else NETWORKS)
        if mode == "eval" or has_batch_norm(name)
    ]
    left = [c for c in wanted if (c.network, c.mode, c.size) not in done]
    rows = table.read()
    for k in bar("networks", len(left)):
        rows = table.add([row(left[k])])
    sizes = sorted({r["size"] for r in rows})
    for size in sizes:
        own = [r for r in rows if r["size"] == size]
        good = [r for r in own if not r["error"]]
        ratio = sorted(r["seconds_a_step"] / r["plain_seconds_a_step"] for r in good if not r["plain_error"])
        print(f"{size}: {len(good)} of {len(own)} run; a step in that of the plain attack: median "
              f"{ratio[len(ratio) // 2]:.2f}; largest error {max(r['max_error'] for r in good):.1e}; largest peak "
              f"{max(r['peak_mb'] for r in good) / 1024:.1f} GiB")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
