"""Updates on public images, by which a server guesses at what it was not sent."""

from __future__ import annotations

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
