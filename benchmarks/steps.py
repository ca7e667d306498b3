"""What a step of an attack costs on ResNet-18 at 32 × 32, beside peers, in one process.

    uv run --with breaching==0.1.2 benchmarks/steps.py --data-root ../shared/data

One CIFAR-10 image, torchvision's resnet18 in eval mode with random weights, running statistics of 32 public images and
10 classes. All take turns, one call each, so that whatever else the machine does falls on all of them alike:

    training     forward, backward and a step of SGD, of the same image
    plain        ‖∇θ ℓ − g‖² and its slope in the image, differentiated twice by autograd
    breaching    the closure that its attack `invertinggradients` (cosine, total variation) optimises, if installed
    pplleak      log p(z | g) and its slope, prior included (60 public images), for one start and for eight
    recorded     the same by `Density.recorded`, and how long recording took

A row is the median and the least of `--rounds` calls, in seconds a start, and the median in that of `plain`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.nn.functional as F
import tyro
from networks import PUBLIC, RATIO, Case, build, resized
from torch import Tensor, nn

from pplleak import data, runs
from pplleak.client import Client
from pplleak.density import build as posterior
from pplleak.federation.observation import Observation
from pplleak.models import optimal

COLUMNS = {"what": str, "starts": int, "seconds": float, "least": float, "of_plain": float, "setup_seconds": float}


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path = Path("data")
    """Where cifar10/ lies."""
    rounds: int = 15
    recorded: bool = True
    """False leaves the recordings out."""
    csv: Path = Path("benchmarks/results/steps.csv")


def breaching(network: nn.Module, gradients: list[Tensor], x: Tensor, y: Tensor) -> Callable[[], Any]:
    """One evaluation of its objective, as its attack makes it."""
    import breaching as peer

    attack = peer.get_attack_config("invertinggradients")
    attacker = peer.attacks.prepare_attack(network, nn.CrossEntropyLoss(), attack)
    attacker.objective.initialize(attacker.loss_fn, attack.impl, None)
    candidate = x.clone().requires_grad_()
    shared = [{"gradients": gradients}]
    adam = torch.optim.Adam([candidate])
    return attacker._compute_objective(candidate, y, [network], adam, shared, 0)


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    public = data.public("cifar10", args.data_root).x
    public = resized(public[torch.linspace(0, len(public) - 1, PUBLIC).long()], 32)
    images = data.private("cifar10", args.data_root)
    x, y = images.x[:1], images.y[:1]
    network = build(Case("resnet18", "eval", 32, args.data_root), public)
    client = Client(network, tuple(x.shape[1:]), 10)
    parameters = [network.get_parameter(n) for n in client.layers]
    shared = torch.autograd.grad(F.cross_entropy(network(x), y), parameters)
    u = torch.cat([g.flatten() for g in shared])
    sigma = RATIO * float(u.double().square().mean().sqrt())
    g = u + sigma * torch.randn(len(u), generator=torch.Generator().manual_seed(1))
    parts = list(client.split(g).values())
    observed = Observation(client=client, g=g, labels=y, batch_size=1, truth=x)
    density = posterior(functools.partial(optimal.model, sigma=sigma, reference=public), client, observed)
    pyro.set_rng_seed(0)
    one, eight = density.sample_prior(1), density.sample_prior(8)
    sgd = torch.optim.SGD(network.parameters(), lr=0.0)

    def training() -> None:
        sgd.zero_grad()
        F.cross_entropy(network(x), y).backward()
        sgd.step()

    def plain() -> None:
        guess = x.clone().requires_grad_()
        own = torch.autograd.grad(F.cross_entropy(network(guess), y), parameters, create_graph=True)
        off = torch.stack([(a - b).square().sum() for a, b in zip(own, parts, strict=True)]).sum()
        torch.autograd.grad(off, guess)

    calls: dict[tuple[str, int], Callable[[], Any]] = {
        ("training", 1): training,
        ("plain", 1): plain,
        ("pplleak", 1): lambda: density.value_and_grad(one),
        ("pplleak", 8): lambda: density.value_and_grad(eight),
    }
    if importlib.util.find_spec("breaching"):
        calls["breaching", 1] = breaching(network, parts, x, y)
    else:
        print("breaching is not installed: uv run --with breaching==0.1.2 …")
    setup = dict.fromkeys(calls, 0.0)
    for z in (one, eight) if args.recorded else ():
        start = time.perf_counter()
        recorded = density.recorded(len(z))
        setup["recorded", len(z)] = time.perf_counter() - start
        calls["recorded", len(z)] = functools.partial(recorded, z)
    taken: dict[tuple[str, int], list[float]] = {what: [] for what in calls}
    for k in range(args.rounds + 2):  # two that nobody counts
        for what, call in calls.items():
            start = time.perf_counter()
            call()
            if k >= 2:
                taken[what].append((time.perf_counter() - start) / what[1])
    middle = {what: sorted(t)[len(t) // 2] for what, t in taken.items()}
    rows = [
        {"what": what[0], "starts": what[1], "seconds": middle[what], "least": min(t),
         "of_plain": middle[what] / middle["plain", 1], "setup_seconds": setup[what]}
        for what, t in taken.items()
    ]  # fmt: skip
    runs.table(args.csv, rows, list(COLUMNS))
    for row in rows:
        print(f"{row['what']:<10} {row['starts']} start(s): {row['seconds']:.4f} s a start (least {row['least']:.4f}), "
              f"{row['of_plain']:.2f} of plain; {row['setup_seconds']:.1f} s before")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
