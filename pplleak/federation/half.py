"""Clients that compute in half precision, as an adversary sees them who computes in float32.

The client's weights, images, forward and backward pass and what it shares are bfloat16 or float16. Its network is no
smooth function then, and slopes of it say nothing. The adversary takes the float32 update at the same, rounded weights,
and what rounding does to it for noise,

    u_half = u + σ_r ε,    σ_r = r · rms(g),    r² = mean ‖u_half(x) − u(x)‖² / mean ‖u(x)‖²

with r measured where the adversary can compute both: on public images, in batches of the client's size, classes in
turn. An approximation: rounding errors grow with their entry, so that a layer of large ones (the last bias) errs by
more than σ_r and others by less. The fit sees that, and says so of layers; χ² an entry is about 1 in all.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.protection import Protection

Half = Literal["float16", "bfloat16"]
BATCHES = 8  # of public images, on which the rounding is measured


def is_half(dtype: str) -> bool:
    return dtype in get_args(Half)


def computing(client: Client, dtype: str) -> Client:
    """The same client in half precision; the one that is given has weights which it holds exactly."""
    return replace(client, network=copy.deepcopy(client.network).to(getattr(torch, dtype)))


@torch.no_grad()
def rounding(client: Client, half: Client, public: Tensor, batch_size: int) -> float:
    """r, on public images (N, *input_shape).

    Raises:
        BadInput: there are no public images; an update of theirs overflows.
    """
    if not len(public):
        raise BadInput("what half precision rounds off is measured on public images, and there are none")
    count = BATCHES * batch_size
    picked = torch.linspace(0, len(public) - 1, min(count, len(public))).long()
    x = public[picked.repeat(-(-count // len(picked)))[:count]].to(client.device, client.dtype)
    y = (torch.arange(count, device=x.device) % client.labels).reshape(BATCHES, batch_size)
    off = whole = 0.0
    for images, labels in zip(x.unflatten(0, (BATCHES, batch_size)), y, strict=True):
        u = client.update(images, labels).materialise().double()
        own = half.update(images, labels).materialise().double()
        off, whole = off + float((own - u).square().sum()), whole + float(u.square().sum())
    if not math.isfinite(off):
        raise BadInput("the client's update overflows in half precision: take bfloat16, or float32")
    return math.sqrt(off / whole)


def noisier(protection: Protection, sigma: float) -> Protection:
    """The same protection, with noise of σ beside that of its channel.

    Raises:
        BadInput: its channel adds no noise of a known σ, so that no other can go beside it.
    """
    if protection.sigma is None:
        raise BadInput(f"the channel {protection.channel} has no noise of a known σ, and what half precision rounds "
                       "off is told by one: take a channel with sigma, or float32")  # fmt: skip
    return protection.with_sigma(math.hypot(protection.sigma, sigma))
