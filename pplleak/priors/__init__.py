"""Priors p(x) and p(y): what the adversary knows of the data before. One family a file.

``NAME.py`` has a function `prior(like, *, reference, …settings)`, which returns what has `sample(batch_size)`: nothing
else need be written for a new one. A prior of each class takes the public images' `labels` beside them, and returns
what has `of_class(y)` (`Conditional`). A prior that is trained and kept in a file has `fit` and `restore` beside it.
Labels (`labels`) and the statistics of BatchNorm (`batchnorm`) are no priors of images by themselves.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from pplleak import folders, programs
from pplleak import settings as settings_of
from pplleak.priors._contract import Conditional as Conditional
from pplleak.priors._contract import Like as Like
from pplleak.priors._contract import Prior as Prior
from pplleak.settings import Named

FOLDER = Path(__file__).parent


def names() -> dict[str, str]:
    """Every prior that can be named, with the first line of its file, read without running it."""
    return folders.names(FOLDER, "prior")


@functools.cache  # a model asks at every trace
def get(name: str) -> Callable[..., Prior | Conditional]:
    """The function `prior` of a file; raises BadInput where there is none."""
    return cast("Callable[..., Prior | Conditional]", folders.load(__name__, "prior", name, "prior").prior)


def settings(name: str) -> list[programs.Setting]:
    """Everything that a prior can be set to but its reference images, with defaults and help lines."""
    return programs.settings(get(name), reserved={"reference", "labels"})


def check(named: Named, where: str = "") -> Named:
    """The prior with all its settings at their values: those that are not given at their defaults.

    Args:
        where: what named it, at the head of the messages.

    Raises:
        BadInput: an unknown name or setting, or a value that the prior refuses.
    """
    name = named.name
    whole = settings_of.check(named, settings(name), f"the prior {name}", where)
    if not whole.settings.get("file") and name not in folders.names(FOLDER, "fit"):  # training one takes too long here
        make(whole, _Small(), _few_images(), _few_labels())
    return whole


def make(
    named: Named, like: Like, reference: str | Tensor = "digits", labels: Tensor | None = None
) -> Prior | Conditional:
    """p(x) for a client's images, in its precision and on its device; fitted once, however often it is asked for.

    Args:
        like: the client. reference: the public images that it is fitted to: a name or a folder of `pplleak.data`, or a
            tensor of them (N, *input_shape). labels: theirs, (N,), where it is a tensor and they are known.
    """
    prior = get(named.name)
    told = {"labels": labels} if "labels" in inspect.signature(prior).parameters else {}
    return prior(like, reference=reference, **told, **named.settings)


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Small:
    """Images of four pixels, on which settings are tried."""

    input_shape: tuple[int, ...] = (1, 2, 2)
    dtype: torch.dtype = torch.float64
    device: torch.device = _CPU


@functools.cache
def _few_images() -> Tensor:
    return torch.linspace(0.05, 0.95, 32, dtype=torch.float64).roll(5).reshape(8, 1, 2, 2)


@functools.cache
def _few_labels() -> Tensor:
    return torch.arange(8) % 2
