"""Gradients of made-up images: what defences have in common that share u(x*, y) of an image x* made from x.

    x*₀ = (1 − blend) x + blend ν,   ν ~ Uniform(0, 1) a pixel,   x* by Adam in the box [0, 1] from there on

Such a defence exports `synthetic(client, x, y, *, settings) -> x*`, for examples of any number of chains at once. What
x* tells of x is then a matter of pairs (x, x*) of public images: `paired`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.client.loss import get
from pplleak.errors import BadInput, require_positive
from pplleak.federation import defences
from pplleak.priors.gaussian import FittedGaussian, fit_gaussian

TOGETHER = 100  # images that are made at once


def require(client: Client, blend: float, trade: float, far: float, steps: int, lr: float) -> None:
    """Raise BadInput for settings that no client can have, or one whose examples are not looked at one by one."""
    require_positive(far=far, steps=steps, lr=lr)
    if not 0 < blend <= 1:
        raise BadInput(f"blend must be above 0 and at most 1 (the share of noise that it begins with), not {blend}")
    if trade < 0:
        raise BadInput(f"trade must not be negative (what a distance from the image is worth), not {trade}")
    if client.vocabulary is not None or client.columns is not None or client.mixes_batch:
        raise BadInput("an image is made up of one image: neither text nor records, nor BatchNorm in train mode")


def begun(x: Tensor, blend: float) -> Tensor:
    """x*₀ of images x, by torch's generator."""
    return (1 - blend) * x + blend * torch.rand_like(x)


def away(made: Tensor, x: Tensor, far: float) -> Tensor:
    """1 − exp(−d² / 2 far²), d the root-mean-square distance of images (*chains, *event) in pixel units, (*chains,):
    0 at x itself, and no more than 1 however far."""
    return 1 - torch.exp(-0.5 * (made - x).square().mean(-1) / far**2)


def made_of(
    client: Client,
    x: Tensor,
    missed: Callable[[Tensor], Tensor],
    *,
    trade: float,
    far: float,
    blend: float,
    steps: int,
    lr: float,
) -> Tensor:
    """x* = argmin of missed(x*) − trade · away(x*, x), both (*chains,), of images x (*chains, B, *input_shape)."""
    event = -len(client.input_shape) - 1

    def objective(made: Tensor) -> Tensor:
        return missed(made) - trade * away(made.flatten(event), x.flatten(event), far)

    return descended(begun(x, blend), objective, steps=steps, lr=lr)


def descended(start: Tensor, objective: Callable[[Tensor], Tensor], *, steps: int, lr: float) -> Tensor:
    """x* from `start` on, in the box: objective(x*) is (*chains,), and each chain descends alone."""
    with torch.enable_grad():
        at = start.clone().requires_grad_()
        adam = torch.optim.Adam([at], lr)
        for _ in range(steps):
            (at.grad,) = torch.autograd.grad(objective(at).sum(), at)
            adam.step()
            with torch.no_grad():
                at.clamp_(0, 1)
    return at.detach()


def joint(
    client: Client,
    name: str,
    settings: Mapping[str, Any],
    public: Tensor,
    labels: Tensor | None,
    simulated: int,
    floor: float,
) -> FittedGaussian:
    """The Gaussian of (x, x*) over public images, of shape (2, *input_shape): what an adversary can know of both.

    Args:
        name, settings: the defence, and all its settings. public: (N, *input_shape). labels: (N,), or None: at random.
        simulated: how many images are made up, at most N. floor: as for `fit_gaussian`.
    """
    pairs = paired(client, name, tuple(sorted(settings.items())), public, labels, simulated)
    return fit_gaussian(pairs, floor=floor, dtype=client.dtype, device=client.device)


@functools.lru_cache(maxsize=4)  # a model asks at every trace; a client's and a tensor's hash is its identity
def paired(
    client: Client, name: str, settings: tuple[tuple[str, Any], ...], public: Tensor, labels: Tensor | None, count: int
) -> Tensor:
    """Public images beside what the defence makes of each, (count, 2, *input_shape); alike for like arguments."""
    require_positive(simulated=count)
    if get(client.loss).targets != "classes":
        raise BadInput(f"{name} is simulated on classes, and the targets of the loss {client.loss} are none")
    make, made = defences.load(name).synthetic, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        picks = torch.randperm(len(public))[:count]
        y = torch.randint(client.num_classes, (len(public),)) if labels is None else labels
        for some in picks.split(TOGETHER):
            x = public[some].to(client.device, client.dtype)
            made.append(
                torch.stack([x, make(client, x[:, None], y[some, None].to(client.device), **dict(settings))[:, 0]], 1)
            )
    return torch.cat(made)
