"""How well another client, or another belief, explains an observation.

    log p(g | alternative) ≈ log p(ẑ, g) + (d/2) log 2π − ½ log |H|,   ẑ the highest point of a short search   (Laplace)

Source: MacKay 2003, chapter 28 (model comparison).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.client.update import Update
from pplleak.density import Density, Model, build, whitening
from pplleak.density.decrement import polish
from pplleak.density.search import maximise
from pplleak.federation.observation import Observation
from pplleak.posterior.misfit import Misfit

SCREENED, STARTS, STEPS, POLISH = 64, 4, 100, 5  # draws of the prior; of them, where a search starts; its length
WIDEST = 1024  # latents up to which an evidence is worth its Hessian; beyond, the highest densities are compared


@dataclass(frozen=True, eq=False, kw_only=True)
class Altered(Client):
    """A client that feeds before(x) to its network, trains at rate() times its learning rate, and shares after(u)."""

    before: Callable[[Tensor], Tensor] | None = None
    rate: Callable[[], Tensor] | None = None
    after: Callable[[Update], Update] | None = None

    def update(self, x: Tensor, y: Tensor, *more: Tensor | None, **given: Tensor | None) -> Update:
        if self.rate is not None:
            given["rate"] = self.rate()
        u = super().update(x if self.before is None else self.before(x), y, *more, **given)
        return u if self.after is None else self.after(u)


@dataclass(frozen=True, eq=False)
class Alternative:
    """Another client or belief, and what is said of it: `words` may hold {latent} of `read`, as NAME: function."""

    name: str
    words: str
    model: Model
    client: Client
    observed: Observation
    read: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = ()


def free_rate() -> Tensor:
    """A factor of the learning rate that nobody knows: log-normal, within a factor of 7 or so."""
    rate: Tensor = pyro.sample("log_rate", dist.Normal(0.0, 2.0)).exp()
    return rate


class Evidence(NamedTuple):
    """log p(g | alternative) by Laplace, the p-value of its misfit at the mode, its words, and its sites there."""

    log: float
    p: float
    words: str
    values: dict[str, Tensor]


def evidence(each: Alternative) -> Evidence:
    """How well an alternative explains what it was given.

    Raises:
        BadInput, RuntimeError, ValueError: the client cannot be such a one.
    """
    density = build(each.model, each.client, each.observed)
    with torch.no_grad():
        drawn = density.sample_prior(SCREENED)
        heights = torch.nan_to_num(density(drawn), nan=-math.inf)
    found = maximise(density, begin=drawn[heights.topk(STARTS).indices], steps=STEPS)
    z, _ = polish(functools.partial(density, jacobian=False), found.z[0], POLISH)
    with torch.no_grad():
        value = float(density(z[None]))
    if density.dim <= WIDEST:
        value += whitening.fit(density, z, newton=0).log_det + density.dim / 2 * math.log(2 * math.pi)
    law, values = _at(density, z)
    p = Misfit(each.observed, [law], density.dim).misfit().get("p", 0.0)
    shown = {n: f"{float(change(values[n].reshape(-1)[0])):.2g}" for n, change in each.read}
    shown["y"] = " ".join(map(str, values["y"][0].tolist()))
    return Evidence(value, p, each.words.format(**shown), values)


@torch.no_grad()
def _at(density: Density, z: Tensor) -> tuple[channels.Channel, dict[str, Tensor]]:
    """The channel and the sites' values at one point, as two equal chains; open labels are the likeliest ones."""
    torch.manual_seed(0)
    pair = z.expand(2, -1)
    values, _ = density.constrain(pair)
    _, y = density.images(pair[:1].expand(32, -1))
    labels, counts = y.unique(dim=0, return_counts=True)
    values["y"] = labels[counts.argmax()].expand(2, -1)
    return density.trace(values, 2).nodes["g"]["fn"], values
