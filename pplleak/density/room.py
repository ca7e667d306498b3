"""How much of a log-density is evaluated at once: chains in parts, a sum over labels as a whole or not at all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pplleak import memory
from pplleak.density import footprint
from pplleak.density.recording.tape import fitting

if TYPE_CHECKING:
    from pplleak.density.density import Density

ROOM = 2**26  # entries of updates, made of draws of the prior or held side by side: more may take too much memory


def at_once(density: Density, chains: int) -> int:
    """How many of so many chains fit into memory together: all of them, or a divisor of their number."""
    labels = math.prod(map(len, density.discrete.values()))
    if chains * labels * density.observed.batch_size * density.client.update_size < ROOM:
        return chains
    return fitting(density, torch.zeros(chains, density.dim, dtype=density.client.dtype, device=density.client.device))


def first_labels(density: Density, count: int) -> Density:
    """The same with a sum over the first `count` labels alone."""
    cut = {n: v[:count] for n, v in density.log_orders.items()}
    return replace(density, discrete={**density.discrete, "y": density.discrete["y"][:count]}, log_orders=cut)


def require(density: Density) -> None:
    """Raise BadInput where a sum over labels, whose updates may lie side by side, takes more memory than there is."""
    y, size = density.discrete["y"], density.client.update_size
    if len(y) * density.observed.batch_size * size < ROOM:
        return
    z = density.sample_prior(1)
    once, each = footprint.by_rows(lambda k: first_labels(density, k).value_and_grad(z))
    what = f"a sum over {len(y)} labels of {density.observed.batch_size} examples"
    memory.require(once + len(y) * each, what, "give the labels, recover them, or take a smaller batch")
