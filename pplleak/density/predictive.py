"""Draws of latents with what they would have shared, and what of it an estimator looks at: learning needs no more.

    y, z ~ p(y, z),   g ~ p(g | z, y)                        of labels that were shared, y is these

A sketch of g: its leading directions, those of the covariance of the update *before* the channel (where the model's g
is one of our channels, which knows it), so that noise in all directions does not hide them:

    s = Vᵀ(g − ḡ) / sd,    V: the leading eigenvectors of Cov(u)

The coordinates of z that g tells of, where the prior of z is Normal(0, I): the leading eigenvectors U of

    H = E [∇ log p(g | z) ∇ log p(g | z)ᵀ]   over z and g,   the Fisher information under the prior

Where p(z | g) is replaced by its marginal in Uᵀz times the prior of the rest, E KL ≤ ½ Σ of the eigenvalues left out
(Cui and Zahm 2021, Data-free likelihood-informed dimension reduction of Bayesian inverse problems, section 3).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from pplleak import memory
from pplleak.density.density import Density, marginal
from pplleak.errors import BadInput
from pplleak.progress import ProgressBar

ROOM = 2**22  # entries of the updates of one batch of draws
PILOT = 1024  # draws that a sketch is made of, at most
SCORES = 512  # draws that the Fisher information is averaged over
MARK = 16  # draws that a program is known by


@dataclass(frozen=True, eq=False)
class Sketch:
    """s = (g − centre) basis / scale: centre (D,), basis (D, features), scale (features,)."""

    centre: Tensor
    basis: Tensor
    scale: Tensor

    def __call__(self, g: Tensor) -> Tensor:
        """g (…, D) -> s (…, features)."""
        return (g - self.centre) @ self.basis / self.scale


@dataclass(frozen=True, eq=False)
class Informed:
    """Orthonormal directions of z, (dim, dim), of which g tells of the first `count`; `missed` ≥ E KL of leaving the
    others to the prior, in nats."""

    directions: Tensor
    count: int
    missed: float


def simulate(density: Density, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """z (count, dim), g (count, D) and the update before the channel (count, D), or g where that is not known; by
    torch's generator.

    Raises:
        BadInput: the model is known only up to a factor, and cannot be drawn from.
    """
    labels = density.observed.labels
    given = {} if labels is None else {"y": labels}

    def plated() -> Any:
        with pyro.plate("chains", count, dim=-1):
            return density.model(density.client, density.observed.batch_size)

    with torch.no_grad(), pyro.validation_enabled(False):
        nodes = poutine.trace(poutine.condition(plated, data=given)).get_trace().nodes
        factors = [n for n, v in nodes.items() if v["type"] == "sample" and isinstance(v["fn"], Unit)]
        if factors:
            raise BadInput(f"the model is known only up to its factor '{factors[0]}', and draws of it are what is "
                           "learnt from: take a proper prior (gmrf for tv)")  # fmt: skip
        z = density.unconstrain({s.name: nodes[s.name]["value"] for s in density.sites})
        g = nodes["g"]["value"].expand(count, -1)
        update = getattr(nodes["g"]["fn"], "update", None)
        return z, g, g if update is None else update.materialise().expand(count, -1)


def batches(density: Density, count: int, progress: ProgressBar, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` draws of z and g, as many at a time as there is ROOM for."""
    most = max(1, ROOM // density.client.update_size)
    sizes = [most] * (count // most) + [count % most] * (count % most > 0)
    for k in progress(what, len(sizes)):
        z, g, _ = simulate(density, sizes[k])
        yield z, g


def mark(density: Density, settings: Mapping[str, Any]) -> str:
    """What an estimator depends on, as a short word: the first draws of the program under a fixed seed (which its
    beliefs, the weights, the noise and the labels all change), and the settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z, g, _ = simulate(density, MARK)
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for drawn in (z, g):
        digest.update(drawn.detach().cpu().double().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def sketch(density: Density, features: int) -> Sketch:
    """The leading directions of the updates of draws from the prior, at most `features` of them; `scale` is that of s
    over these draws."""
    size = density.client.update_size
    count = max(features + 2, min(PILOT, 16 * ROOM // size))
    memory.require(24.0 * count * size, f"a sketch from {count} updates of {size:,} entries", "take a smaller network")
    parts = [simulate(density, min(max(1, ROOM // size), count - k)) for k in range(0, count, max(1, ROOM // size))]
    g, u = (torch.cat([p[k] for p in parts]) for k in (1, 2))
    centre = g.double().mean(0)
    centred = u.double() - u.double().mean(0)
    values, rows = torch.linalg.eigh(centred @ centred.mT)  # of a matrix of draws, not of entries
    kept = [k for k in range(count - 1, -1, -1) if values[k] > 1e-10 * values[-1]][:features]
    if not kept:
        raise BadInput("the update is the same for every draw from the prior: there is nothing to learn from it")
    basis = centred.mT @ rows[:, kept] / values[kept].sqrt()
    scale = ((g.double() - centre) @ basis).std(0).clamp(min=1e-30)
    return Sketch(*(t.to(g.dtype) for t in (centre, basis, scale)))


def informed(density: Density, most: int, enough: float) -> Informed:
    """The coordinates of z that g tells of: as few as miss no more than `enough` nats, and `most` at most; all of them
    where the prior of z is not Normal(0, I)."""
    most = min(most, density.dim)
    z, g, _ = simulate(density, min(SCORES, max(8, ROOM // density.client.update_size)))
    own = replace(density, observed=replace(density.observed, g=g))  # a gradient each
    free = z.detach().clone().requires_grad_()
    prior, likelihood = own.terms(free)
    normal = marginal(prior, torch.zeros_like(likelihood)).detach() + 0.5 * z.double().square().sum(1)
    every = torch.eye(density.dim).to(z)
    if float(normal.max() - normal.min()) > 1e-3 * math.sqrt(density.dim):
        if density.dim > most:
            raise BadInput(f"the prior of {density.dim} latents is not Normal(0, I), so that none of them can be left "
                           f"to it, and npe learns {most}: take svi or hmc")  # fmt: skip
        return Informed(every, density.dim, 0.0)
    (slope,) = torch.autograd.grad(marginal(prior, likelihood).sum(), free)
    score = slope.double() + z.double()  # less the slope of the prior, −z
    values, directions = torch.linalg.eigh(score.mT @ score / len(score))
    values, directions = values.flip(0).clamp(min=0), directions.flip(1)
    left = 0.5 * (values.sum() - values.cumsum(0))
    count = min(most, 1 + int((left > enough).sum()))
    return Informed(directions.to(z), count, max(0.0, float(left[count - 1])))
