"""Updates on public images, by which a server guesses at what it was not sent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pplleak.client import Client


def updates(client: Client, public: Tensor, batch_size: int, count: int, seed: int = 0) -> Tensor:
    """Updates (count, D) on random public images (N, *input_shape) with random labels; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(public), (count, batch_size), generator=generator)
    labels = torch.randint(client.labels, (count, batch_size), generator=generator)
    if (vectors := client.target_prior(batch_size)) is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            labels = vectors.sample((count,))
    with torch.no_grad():
        return client.update(public[picks].to(client.device), labels.to(client.device)).materialise()


def remembered[T](simulate: Callable[..., T]) -> Callable[..., T]:
    """A function of a client and more, remembered: a model asks at every step. A client's and a tensor's hash is its
    identity, which a step of a training leaves as it is; the versions of the weights are another part of the key."""

    @functools.lru_cache(maxsize=4)
    def at(versions: tuple[int, ...], client: Client, *more: Any) -> T:
        return simulate(client, *more)

    @functools.wraps(simulate)
    def asked(client: Client, *more: Any) -> T:
        return at(tuple(p._version for p in client.parameters.values()), client, *more)

    return asked
