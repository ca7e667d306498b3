"""Batches whose examples may change their places without a trace: then labels are counted, not ordered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pplleak.federation.observation import Observation

if TYPE_CHECKING:
    from pplleak.density.density import Density


def interchangeable(observed: Observation) -> bool:
    """True where the observation does not tell all examples of its batch apart: two labels are equal, or open."""
    return observed.batch_size > 1 and (observed.labels is None or len(observed.labels.unique()) < observed.batch_size)


@torch.no_grad()
def exchangeable(density: Density) -> bool:
    """True where the order of a batch's examples means nothing: log p(πz, πy, g) = log p(z, y, g), and x(πz) = πx(z).

    Seen at a draw from the prior, for two permutations that generate all others: a cycle and a swap. π acts on the
    first dimension of every site that is as long as the batch. A client that trains on minibatches takes the examples
    in their order, unless it shuffles them.
    """
    size, local = density.observed.batch_size, density.client.local
    if local is not None and local.batch_size is not None and not local.shuffle:
        return False
    free = replace(density, observed=replace(density.observed, labels=None))
    base = torch.arange(size)
    orders = torch.stack([base, base.roll(1), torch.cat([base[:2].flip(0), base[2:]])]).to(density.client.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        values, _ = free.constrain(free.sample_prior(1))
        values |= {n: law.sample(torch.Size([1])) for n, law in free.moved.items() if n != "y"}
    values["y"] = base.to(density.client.device)[None] % density.client.labels
    moved = {
        n: v[0][orders] if v.dim() > 1 and v.shape[1] == size else v.expand(3, *v.shape[1:]) for n, v in values.items()
    }
    joint = sum(free._terms(moved, 3))
    assert isinstance(joint, Tensor)
    joint = joint.reshape(-1, 3)
    if set(free.discrete) - {"y"}:  # other values for other orders of the examples, and the same sum
        joint = joint.logsumexp(0, keepdim=True)
    if not joint.isfinite().all():
        return False
    x = free.trace({**moved, **{n: s[:1].expand(3, *s.shape[1:]) for n, s in free.discrete.items()}}, 3).nodes["x"]
    images = x["value"].expand(3, size, *density.client.input_shape)
    rounding = 100 * torch.finfo(density.client.dtype).eps
    same = torch.allclose(images, images[0][orders], rtol=rounding, atol=rounding)
    return same and torch.allclose(joint[:, 1:], joint[:, :1].expand(-1, 2), rtol=rounding, atol=rounding)
