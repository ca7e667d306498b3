"""`record`: one training of a client, written down while it runs."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pplleak.client import loss as losses
from pplleak.client.training import Shares
from pplleak.errors import BadInput
from pplleak.federation import files
from pplleak.federation.capture import private as privates
from pplleak.federation.capture import training
from pplleak.federation.capture.watch import Seen, require_seen, watched
from pplleak.federation.protection import Protection
from pplleak.settings import Named

PRIVATE = "private"  # the folder beside an observation that only the auditor keeps


@contextlib.contextmanager
def record(
    network: nn.Module | None,
    path: str | Path,
    *,
    private: str | Path | None = None,
    source: str = "",
    loss: str = "",
    labels: Tensor | None = None,
    normalise: Sequence[float] = (),
    schedule: str = "constant",
    clip: float | None = None,
    prox: float = 0.0,
    shares: Shares = "difference",
    delta: float = 1e-5,
) -> Iterator[Seen]:
    """Write what a client shares of the training inside the block, and, apart from it, the private batch.

        with pl.record(network, "audit/round-1.safetensors"):
            for x, y in loader:
                optimizer.zero_grad(); loss(network(x), y).backward(); optimizer.step()

    What is shared is θ_after − θ_before of all steps; the gradient of a single plain SGD step, from which it follows;
    the gradient where no optimiser steps. Behind Opacus it is the noised gradient of every step, which is what ε is
    reckoned for: FILE-step-1.safetensors, FILE-step-2.safetensors, … where there are several. Inputs, labels, loss,
    optimiser and weights are seen by themselves: a loss of `torch.nn.functional` or `torch.nn`, an optimiser of
    `torch.optim`, one forward pass a step. The rest is said by name.

    Args:
        network: any module; None takes the first that is called with gradients.
        path: the observation, FILE.safetensors. private: the private batch; the file of the same name in the folder
            `private` beside it where none is given. Only the auditor keeps it.
        source: what rebuilds the network: `mlp:widths=(64,)`, or FILE.py:FUNCTION, or FILE.py:CLASS without arguments;
            the class of the network where none is given. Whoever attacks has to name it again.
        loss: a name of `pplleak.client.loss` with settings. labels: (N,), of all inputs in the order of their steps.
            Both for a loss of one's own.
        normalise: mean and sd that a transform normalised the inputs by, or those of each channel, means first.
        schedule, clip, prox: of local training (`pplleak.client.training`), which nothing here sees.
        shares: what is shared of the movement.
        delta: of the (ε, δ)-differential privacy of all steps so far that is written beside a step of Opacus (by RDP).

    Raises:
        BadInput: when the block is left: what was trained cannot be said by an observation. The training is done then,
            and nothing is written (of a step of Opacus that cannot).
    """
    with watched(network) as seen:
        yield seen
    require_seen(seen)
    loss, each, classes = _loss(seen, loss, labels)
    more = {"clip": clip, "prox": prox, "shares": shares}
    kept = Path(private or Path(path).parent / PRIVATE / Path(path).name)
    for part, y, number in _parts(seen, each):
        name = f"-step-{number}" if number and len(seen.steps) > 1 else ""
        file, apart = (p.with_stem(p.stem + name) for p in (Path(path), kept))
        spent = part.steps[0].added.spent(delta) if part.steps and part.steps[0].added else {}
        spent |= {"step": number, "steps": len(seen.steps)} if name else {}
        _write(part, file, apart, source, loss, y, classes, normalise, schedule, more, spent)


def _parts(seen: Seen, labels: list[Tensor]) -> Iterator[tuple[Seen, list[Tensor], int]]:
    """What an observation each is made of, with its labels: the whole training, or every step of DP-SGD that took
    examples, with its number.

    Raises:
        BadInput: Opacus' network was trained without its optimiser, or none of its steps took an example.
    """
    if not any(s.added for s in seen.steps):
        if seen.network is not None and any(hasattr(p, "grad_sample") for p in seen.network.parameters()):
            raise BadInput("Opacus clips and noises this network's gradients in the step of its own optimiser, and "
                           "none was taken in the block")  # fmt: skip
        yield seen, labels, 0
        return
    filled = [(k, s, y) for k, (s, y) in enumerate(zip(seen.steps, labels, strict=True), 1) if len(y)]
    if not filled or not all(s.added for s in seen.steps):
        raise BadInput("nothing was recorded: the step took no example" if not filled else
                       "some steps were private and some were not, which no observation says")  # fmt: skip
    for k, step, y in filled:
        yield replace(seen, steps=[step], before=step.before), [y], k


def _write(
    seen: Seen, path: Path, private: Path, source: str, loss: str, each: list[Tensor], classes: int,
    normalise: Sequence[float], schedule: str, more: dict[str, Any], spent: dict[str, float],
) -> None:  # fmt: skip
    network = seen.network
    assert network is not None
    steps = seen.steps or [seen.open]
    if sum(len(s.inputs[0]) for s in steps if s.inputs) == 0 or not steps[0].inputs:
        raise BadInput("nothing was recorded: the step took no example")
    x, y, order = training.examples(steps, each)
    local, dp = None, steps[0].added
    if seen.steps and dp is None:
        rates = [float(s.settings[0]["lr"]) for s in seen.steps]
        optimizer = training.optimiser(seen.optimizer, seen.steps[0].settings)
        if not seen.fresh and optimizer != training.optimisers.check("optimizer", "sgd"):
            raise BadInput("the optimiser remembers steps from before this recording, which the server is not modelled "
                           "to know: make a new one each round, or record from its first step on")  # fmt: skip
        local = training.local(optimizer, rates, order, schedule, **more)
    after = {n: p.detach() for n, p in network.named_parameters() if p.requires_grad}
    weighed = torch.cat([p.double().reshape(-1) for p in after.values()]).square().mean().sqrt()
    eps = max(torch.finfo(p.dtype).eps for p in after.values())
    if local is None or training.gradient_of(local):
        shared = steps[0].gradient or {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        shared = {n: shared.get(n, torch.zeros_like(p)) for n, p in after.items()}
        rounded = float(eps * weighed / local.lr) if local is not None else 0.0
        local = None
    else:
        shared = {n: local.factor * (p - seen.before[n]) for n, p in after.items()}
        rounded = abs(local.factor) * float(eps * weighed) * max(1.0, len(seen.steps)) ** 0.5
    if not all(t.isfinite().all() for t in shared.values()):
        raise BadInput("what the client shares holds NaN or infinity: its training diverges")
    x = _in_range(x, normalise)
    sigma = max(files.rounding(shared), rounded)
    files.write(
        path, shared, input_shape=tuple(x.shape[1:]), num_classes=classes,
        network=Named.parse(source or source_of(network)), parameters=seen.before, batch_size=len(x), local=local,
        loss=loss, normalise=normalise, mode=seen.mode,
        protection=Protection(channel=Named("gaussian", {"sigma": sigma}) if dp is None else dp.channel(len(x))),
        privacy=spent or None,
    )  # fmt: skip
    privates.write(private, x, y, order)


def _loss(seen: Seen, loss: str, labels: Tensor | None) -> tuple[str, list[Tensor], int]:
    """The loss by name, the labels of each step, the number of classes.

    Raises:
        BadInput: no loss was seen, or several, or one that is not known; labels of another number.
    """
    steps = seen.steps or [seen.open]
    sizes = [len(s.inputs[0]) for s in steps]
    found = [next((told for told in reversed(s.losses) if len(told[2]) == n), None)
             for s, n in zip(steps, sizes, strict=True)]  # fmt: skip
    outputs = [told for told in found if told is not None]
    if labels is not None and loss:
        if len(labels) != sum(sizes):
            raise BadInput(
                f"{len(labels)} labels for {sum(sizes)} inputs: give one for each, in the order of the steps"
            )
        each = list(labels.detach().cpu().split(sizes))
        with torch.no_grad():
            assert seen.outer is not None
            classes = outputs[0][1].shape[-1] if outputs else seen.outer(steps[0].inputs[0].to(_device(seen))).shape[-1]
    elif len(outputs) < len(steps) or (not loss and any(not name for name, _, _ in outputs)):
        raise BadInput("the loss of a step is none that was seen (torch's cross_entropy, nll_loss, and mse and bce of "
                       "one-hot labels, with a mean over the batch): say loss=… and labels=…")  # fmt: skip
    else:
        names = {name for name, _, _ in outputs}
        if not loss and len(names) > 1:
            raise BadInput(f"the steps had other losses: {', '.join(sorted(names))}; say which with loss=…")
        loss, each, classes = loss or names.pop(), [y for _, _, y in outputs], outputs[0][1].shape[-1]
    losses.check(loss, int(classes))
    return loss, each, int(classes)


def _device(seen: Seen) -> torch.device:
    assert seen.network is not None
    return next(seen.network.parameters()).device


def _in_range(x: Tensor, normalise: Sequence[float]) -> Tensor:
    """The inputs as they were before a transform normalised them; raises BadInput where that is not said."""
    if normalise:
        half = len(normalise) // 2
        mean, sd = (torch.tensor(v, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 2))
                    for v in (normalise[:half], normalise[half:]))  # fmt: skip
        x = x * sd + mean
    low, high = float(x.min()), float(x.max())
    if x.dim() > 2 and not (low >= -0.01 and high <= 1.01):
        said = "normalise=… says another transform" if normalise else "a transform normalises them? Say normalise=…"
        raise BadInput(f"the inputs lie in [{low:.2g}, {high:.2g}], and images in [0, 1]: {said}")
    return x


def source_of(network: nn.Module) -> str:
    """FILE.py:CLASS of a network; raises BadInput for one whose class is torch's own, or in no file."""
    kind = type(network)
    try:
        file = inspect.getsourcefile(kind) or ""
    except (TypeError, OSError):
        file = ""
    if not file or "<locals>" in kind.__qualname__ or kind.__module__.startswith("torch."):
        raise BadInput(f"nothing says how to rebuild the network (a {kind.__name__}): say source='FILE.py:FUNCTION', a "
                       "function (input_shape, num_classes) that returns it")  # fmt: skip
    return f"{os.path.relpath(file)}:{kind.__qualname__}"
