"""Clients that compute in half precision, as an adversary sees them who computes in float32.

The client's weights, images, forward and backward pass and what it shares are bfloat16 or float16. Its network is no
smooth function then, and slopes of it say nothing. The adversary takes the float32 update at the same, rounded weights,
and what rounding does to each of its tensors for noise of the channel `rounded`,

    u_half,l = u_l + σ_l τ_l ε,    σ_l = r_l rms(g_l),    τ_l² = ν_l / χ²(ν_l)

with r_l and ν_l the mean and the spread of log ‖u_half,l(x) − u_l(x)‖² / ‖u_half,l(x)‖², measured where the adversary
can compute both: on public images, in batches of the client's size, classes in turn. An approximation: within a tensor
rounding errors grow with their entry, and go together, so that a posterior is narrower than it should be.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.protection import Protection
from pplleak.settings import Named

Half = Literal["float16", "bfloat16"]
BATCHES = 16  # of public images, on which the rounding is measured
SURE = 0.02  # variance of log ‖…‖² that is left where the batches agree: they are not the private one
NARROWEST = 1e-3  # width of a tensor in that of all: one whose entries are all 0 has noise, too


@dataclass(frozen=True)
class Rounding:
    """What half precision rounds off each of the client's L tensors.

    log_share  (L,), mean over batches of log ‖u_half,l − u_l‖² / ‖u_half,l‖²
    variance   (L,), of that logarithm, as of one more batch
    """

    log_share: Tensor
    variance: Tensor


def is_half(dtype: str) -> bool:
    return dtype in get_args(Half)


def computing(client: Client, dtype: str) -> Client:
    """The same client in half precision; the one that is given has weights which it holds exactly."""
    return replace(client, network=copy.deepcopy(client.network).to(getattr(torch, dtype)))


@torch.no_grad()
def rounding(client: Client, half: Client, public: Tensor, batch_size: int) -> Rounding:
    """What the client rounds off, on public images (N, *input_shape).

    Raises:
        BadInput: there are no public images; an update of theirs overflows.
    """
    if not len(public):
        raise BadInput("what half precision rounds off is measured on public images, and there are none")
    count = BATCHES * batch_size
    picked = torch.linspace(0, len(public) - 1, min(count, len(public))).long()
    x = public[picked.repeat(-(-count // len(picked)))[:count]].to(client.device, client.dtype)
    y = (torch.arange(count, device=x.device) % client.labels).reshape(BATCHES, batch_size)
    shares = []
    for images, labels in zip(x.unflatten(0, (BATCHES, batch_size)), y, strict=True):
        own = half.update(images, labels).materialise().double()
        off = own - client.update(images, labels).materialise().double()
        if not off.isfinite().all():
            raise BadInput("the client's update overflows in half precision: take bfloat16, or float32")
        shares.append(_squares(client, off) / _squares(client, own))
    least = torch.finfo(half.dtype).eps ** 2 / 12 / client.update_size  # one entry rounded, all others exact
    logs = torch.stack(shares).nan_to_num(nan=least, posinf=1.0).clamp(min=least).log()
    of_one_more = (1 + 1 / BATCHES) * (BATCHES - 1) / (BATCHES - 3)  # of Student's t
    return Rounding(logs.mean(0), logs.var(0) * of_one_more + SURE)


def _squares(client: Client, u: Tensor) -> Tensor:
    """‖u_l‖² of every tensor, (L,)."""
    return torch.stack([part.square().sum() for part in client.split(u).values()])


def noisier(protection: Protection, client: Client, g: Tensor, found: Rounding) -> Protection:
    """The same protection, with what half precision rounds off g (D,) beside the noise of its channel. That of the
    channel `gaussian` becomes `rounded`, unless its noise hides the rounding; another one's σ becomes larger.

    Raises:
        BadInput: its channel adds no noise of a known σ, so that no other can go beside it.
    """
    if protection.sigma is None:
        raise BadInput(f"the channel {protection.channel} has no noise of a known σ, and what half precision rounds "
                       "off is told by one: take a channel with sigma, or float32")  # fmt: skip
    noise = protection.sigma**2
    sizes = torch.tensor([shape.numel() for shape in client.layers.values()], dtype=torch.float64)
    signal = (_squares(client, g.double()).cpu() / sizes - noise).clamp(min=0)
    half_dof = _half_dof(found.variance.cpu())
    bias = half_dof.log() - torch.digamma(half_dof)  # E log τ²
    square = signal * (found.log_share.cpu() - bias).exp()
    sigma = math.sqrt(noise + float((sizes * square).sum()) / len(g))
    hidden = bool((sizes * square < 0.1 * noise * (2 * sizes).sqrt()).all())  # in χ² of the noise
    if hidden or not protection.is_channel("gaussian"):
        return protection.with_sigma(sigma)
    share = square / (noise + square)
    widths = ((noise + square).sqrt() / sigma).clamp(min=NARROWEST)
    # the variance of their sum has share², and would have none of the rounding's long tail
    dof = 2 * _half_dof((share * found.variance.cpu()).clamp(min=1e-6))
    told = {"sigma": sigma, "widths": tuple(widths.tolist()), "dof": tuple(dof.tolist())}
    made = replace(protection, channel=Named("rounded", told))
    made.filled()
    return made


def _half_dof(variance: Tensor) -> Tensor:
    """ν/2 at which log χ²(ν) has this variance, ψ'(ν/2) = 1/a + 1/2a² + …; of the first two terms."""
    return (1 + (1 + 2 * variance).sqrt()) / (2 * variance)
