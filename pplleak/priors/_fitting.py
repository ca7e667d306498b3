"""What the fits of the trained priors share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pplleak import runs
from pplleak.errors import BadInput
from pplleak.progress import ProgressBar, silent


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a fit that had something to keep: `fitted`, after `done` of `total` steps."""

    def __init__(self, fitted: Any, done: int, total: int) -> None:
        super().__init__(f"interrupted after {done} of {total} steps")
        self.fitted = fitted


# -- going on ----------------------------------------------------------------------------------------------------------

SHARE = 20  # a fit computes for at least so many times as long as it keeps its state


@dataclass(frozen=True)
class Kept:
    """Where a fit keeps its state, to go on from after a kill.

    path       the prior's file: the states lie hidden beside it, a stage of the fit each
    made_with  what the fit depends on (`_store.fingerprint`): the state of another fit is not gone on from
    """

    path: Path
    made_with: str

    def state(self, stage: str) -> Path:
        return self.path.with_name(f".{self.path.stem}.{stage}.fit")

    def clear(self) -> None:
        """Remove the states: the prior is written."""
        for state in self.path.parent.glob(self.state("*").name):
            state.unlink(missing_ok=True)


@dataclass(frozen=True)
class Training:
    """What an epoch changes, besides torch's generator."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


def going_on(kept: Kept | None, stage: str, epochs: int, training: Training) -> tuple[int, Callable[[int], None]]:
    """How many epochs an earlier process has done, whose state is restored, and what keeps the state after an epoch.

    The state is kept after the first epoch, after the last, and as often between as takes at most 1/SHARE of the time:
    what a kill loses. A fit that went on ends bit for bit as one that was never interrupted.

    Args:
        kept: nothing is kept where it is None. epochs: of the whole stage.

    Raises:
        BadInput: the state cannot be read, or, from what keeps it, not be written.
    """
    if kept is None:
        return 0, lambda done: None
    path, due = kept.state(stage), 0.0

    def keep(done: int) -> None:
        nonlocal due
        begun = time.perf_counter()
        if begun < due and done < epochs:
            return
        _keep(path, training, {"made_with": kept.made_with, "done": done})
        ended = time.perf_counter()
        due = ended + SHARE * (ended - begun)

    return _restored(path, kept.made_with, training), keep


def _keep(path: Path, training: Training, about: dict[str, Any]) -> None:
    optimizer = training.optimizer.state_dict()
    tensors = {f"network.{n}": t for n, t in training.network.state_dict().items()}
    tensors |= {f"optimizer.{k}.{n}": t for k, own in optimizer["state"].items() for n, t in own.items()}
    tensors["generator"] = torch.get_rng_state()
    about |= {"groups": optimizer["param_groups"], "schedule": training.schedule.state_dict()}
    runs.tensors(path, tensors, {n: json.dumps(v) for n, v in about.items()})


def _restored(path: Path, made_with: str, training: Training) -> int:
    """The epochs that are done in a state that is there, which is restored; 0 where there is none of this fit's."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as f:
            about = {n: json.loads(v) for n, v in f.metadata().items()}
            if about["made_with"] != made_with:
                return 0
            tensors = {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118 (not a dict)
        network = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
        own: dict[int, dict[str, Tensor]] = {}
        for name in [n for n in tensors if n.startswith("optimizer.")]:
            _, k, entry = name.split(".")
            own.setdefault(int(k), {})[entry] = tensors[name]
        training.network.load_state_dict(network)
        training.optimizer.load_state_dict({"state": own, "param_groups": about["groups"]})
        training.schedule.load_state_dict(about["schedule"])
        torch.set_rng_state(tensors["generator"])
        return int(about["done"])
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"cannot go on with the fit that {path} holds: {error}; delete it") from error


# -- fits --------------------------------------------------------------------------------------------------------------


@contextmanager
def apart(seed: int) -> Iterator[None]:
    """A fit of its own: models fit their priors while they are being traced, and neither may see the other.

    Own parameters, own random numbers from `seed`, gradients on, and no handler of the trace around it.
    """
    with (
        poutine.block(),
        pyro.get_param_store().scope(),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        pyro.validation_enabled(False),
    ):
        pyro.clear_param_store()
        torch.manual_seed(seed)
        yield


def flat(images: Tensor, kind: str) -> Tensor:
    """Images (N, *input_shape) as rows (N, pixels); raises BadInput where there are too few to fit."""
    if images.shape[0] < 2:
        raise BadInput(f"a {kind} prior needs at least 2 images to be fitted to, got {images.shape[0]}")
    return images.detach().flatten(1)


def epochs_of(count: int, batch: int, epochs: int, most: int) -> tuple[int, int]:
    """Steps an epoch and epochs, for `count` images in batches, within `most` steps; at least one epoch."""
    steps = -(-count // batch)
    return steps, max(1, min(epochs, most // steps))


def one_cycle(optimizer: torch.optim.Optimizer, lr: float, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """The rate that rises to lr over a tenth of the steps and falls to 0; a fit of under ten ends on its way down."""
    total = max(steps + 1, 11)  # of ten, a tenth is no way up: torch divides by its length
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total, pct_start=0.1)


def descended(
    made: Callable[[], Any],
    loss: Callable[[Tensor], Tensor],
    training: Training,
    images: int,
    batch: int,
    epochs: int,
    *,
    stage: str,
    label: str,
    clip: float | None = None,
    progress: ProgressBar = silent,
    kept: Kept | None = None,
) -> Any:
    """What is made after so many epochs of stochastic descent, from where an earlier process left it.

    Args:
        made: the prior, of the networks as they are.
        loss: rows of the images (at most `batch` of them) -> what is to become smaller, ().
        images: how many there are. clip: the longest gradient; None: any.
        stage: of the fit, for its state; label: for the progress.

    Raises:
        Interrupted: Ctrl-C, with what is made by then; a plain KeyboardInterrupt before the first epoch's end.
    """
    done, keep = going_on(kept, stage, epochs, training)
    try:
        for _ in progress(label, epochs - done):
            for part in torch.randperm(images).split(batch):
                training.optimizer.zero_grad()
                loss(part).backward()
                if clip:
                    nn.utils.clip_grad_norm_(training.network.parameters(), clip)
                training.optimizer.step()
                training.schedule.step()
            done += 1
            keep(done)
    except KeyboardInterrupt:
        if not done:
            raise
        raise Interrupted(made(), done, epochs) from None
    return made()
