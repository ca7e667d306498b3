"""What was seen of a training as pplleak's client says it: the examples, the steps that took them, the optimiser."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pplleak import programs
from pplleak.client import optimisers
from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput
from pplleak.federation.capture.watch import Step
from pplleak.settings import Named

HOW = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "decoupled_weight_decay", "lr", "params"}
CLOSE = 1e-6  # of a learning rate to the one that a schedule says


def optimiser(torchs: Any, groups: Sequence[dict[str, Any]]) -> Named:
    """The optimiser of a `torch.optim` object with its settings, as local training names it.

    Args:
        groups: the settings of its parameter groups, as they were at the step.

    Raises:
        BadInput: it is none that pplleak knows, has a setting that pplleak does not, or other ones for some parameters.
    """
    name = type(torchs).__name__.lower()
    name = "adamw" if name == "adam" and groups[0].get("decoupled_weight_decay") else name
    if name not in (known := optimisers.names("optimizer")):
        raise BadInput(f"the optimiser {type(torchs).__name__} is none that local training knows ({', '.join(known)})")
    if len({str(sorted((n, v) for n, v in g.items() if n == "lr" or n not in HOW)) for g in groups}) > 1:
        raise BadInput("the optimiser has other settings for some parameters than for the rest, which is not modelled")
    own = [s.name for s in programs.settings(getattr(optimisers, name))]
    if strange := [n for n, v in groups[0].items() if n not in (*own, *HOW) and v]:
        raise BadInput(f"the optimiser's {strange[0]}={groups[0][strange[0]]} is not modelled")
    return optimisers.check("optimizer", Named(name, {n: groups[0][n] for n in own}))


def examples(steps: Sequence[Step], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[list[int]]]:
    """The examples that all steps took, each once, x (N, *input_shape) and y (N,), and which of them each step took.

    Examples are the same where inputs and label are, bit for bit. Where that leaves no passes over them all, as under
    random transforms, every input counts as an example of its own.
    """
    x, y = torch.cat([s.inputs[0] for s in steps]), torch.cat(list(labels))
    sizes = [len(s.inputs[0]) for s in steps]
    seen: dict[bytes, int] = {}
    keys = [hashlib.blake2b(a.contiguous().numpy().tobytes() + bytes([b % 256])).digest()
            for a, b in zip(x, y.tolist(), strict=True)]  # fmt: skip
    which = [seen.setdefault(key, len(seen)) for key in keys]
    n = len(seen)
    if len(x) % n or any(sorted(which[k : k + n]) != list(range(n)) for k in range(0, len(x), n)):
        which = list(range(len(x)))
    first = [which.index(k) for k in range(max(which) + 1)]
    split = iter(which)
    return x[first], y[first], [[next(split) for _ in range(size)] for size in sizes]


def local(
    optimizer: Named, rates: Sequence[float], steps: Sequence[Sequence[int]], schedule: str, **more: Any
) -> LocalTraining:
    """The local training that takes steps of these sizes at these learning rates.

    Args:
        steps: the examples of each. schedule: of the learning rate, where it is not constant. more: what nobody sees:
            `clip`, `prox`, `shares`.

    Raises:
        BadInput: there is none, or the schedule says other rates.
    """
    sizes, count = [len(s) for s in steps], 1 + max(k for s in steps for k in s)
    passes, rest = divmod(sum(sizes), count)
    ways: list[dict[str, Any]] = []
    if len(sizes) == 1:
        ways = [{}]
    elif not rest:
        ways = [{"epochs": passes, "batch_size": sizes[0] if sizes[0] < count else None},
                {"steps": len(sizes), "batch_size": sizes[0]}]  # fmt: skip
    for way in ways:
        made = LocalTraining(rates[0], optimizer=optimizer, schedule=Named.parse(schedule), **way, **more)
        if made.batch_size is not None and made.batch_size > count:
            continue
        if [len(b) for b in made.batches(count)] == sizes:
            expected = list(made.rates(count))
            if any(not math.isclose(a, b, rel_tol=CLOSE) for a, b in zip(expected, rates, strict=True)):
                said = " ".join(f"{r:.3g}" for r in rates[:4])
                raise BadInput(f"the learning rates of the steps were {said} …, and the schedule {schedule} says "
                               "others: name theirs, schedule='cosine' for example")  # fmt: skip
            return made
    said = " ".join(map(str, sizes[:12]))
    raise BadInput(f"steps of {said} examples over {count} examples are no whole epochs of equal batches, which is "
                   "what local training says")  # fmt: skip


def gradient_of(local: LocalTraining) -> bool:
    """Whether what is shared tells the gradient: one plain step along it."""
    settings = local.optimizer.settings
    return (
        (local.steps, local.epochs or 1, local.optimizer.name, local.clip) == (1, 1, "sgd", None)
        and local.batch_size is None
        and not settings["nesterov"]
        and not settings["weight_decay"]
    )
