"""What the fits of the trained priors share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplleak.errors import BadInput


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a fit that had something to keep: `fitted`, after `done` of `total` steps."""

    def __init__(self, fitted: Any, done: int, total: int) -> None:
        super().__init__(f"interrupted after {done} of {total} steps")
        self.fitted = fitted


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
