"""Maximum a posteriori: the single most probable reconstruction (a point, without uncertainty).

    x̂ = argmax over x of log p(g | x, y) + log p(x)          (Balunović et al. 2022, section 4, for δ → 0)

Adam, signed Adam or L-BFGS climbs from several starts in one batch, without the Jacobian of the coordinates, so that
the maximum is that of the model's own sites. Bounded sites are climbed in unconstrained coordinates, or, as the
published attacks do it, as they are, kept in their box after every step. The best iterate of the best start is
kept, never just the last.

A climb of a fixed number of steps ends where it ends: the nats that are left from there (`pplleak.density.decrement`)
say whether that is a maximum. Adam on its cosine is polished by truncated Newton steps where it is not, from the best
start; a peak that is much sharper in some directions than in others may need `newton` steps on the whole Hessian.

Discrete sites with too many values to sum over (the labels of a large batch, the order of a client that shuffles) are
moved through, in turns with the climb (`pplleak.density.moves`): the maximum is then one of the images and of these
together.

A published attack is its model under its own settings: the model's file says them (`MAP`), and they are the defaults.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import pyro
import torch

from pplleak.client import Client
from pplleak.density import Density, Model, build, cell_climb, decrement, moves, traced
from pplleak.density import starts as starts_
from pplleak.density.box import Box, boxed
from pplleak.density.decrement import Decrement
from pplleak.density.search import BETA2, Decay, Maximum, Optimizer, maximise
from pplleak.density.whitening import climb_by_newton
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent

PRICE = 100  # steps of the climb that allow for one of the polish


def _polished(density: Density, found: Maximum, newton: int, progress: ProgressBar) -> tuple[Maximum, bool]:
    """The maximum with its best start climbed by Newton steps, and whether they came to rest."""
    try:
        z, curvature = climb_by_newton(density, found.z[0], newton, jacobian=False, progress=progress)
    except KeyboardInterrupt:
        return replace(found, interrupted=True), False
    with torch.no_grad():
        value = density(z[None], jacobian=False)
    ends, values = torch.cat([z[None], found.z[1:]]), torch.cat([value, found.value[1:]])
    return replace(found, z=ends, value=values), curvature is not None


def _left(
    density: Density, found: Maximum, bounds: Box | None, steps: int, progress: ProgressBar
) -> tuple[Maximum, Decrement | None]:
    """The maximum with its best start polished, and what is left to climb from there; None where Ctrl-C came."""
    log_density = functools.partial(density, jacobian=False)
    if found.interrupted:
        steps = 0
    try:
        z, left = decrement.polish(log_density, found.z[0], steps, box=bounds, progress=progress)
    except KeyboardInterrupt:
        return replace(found, interrupted=True), None
    if torch.equal(z, found.z[0]):
        return found, left
    with torch.no_grad():
        value = log_density(z[None])
    return replace(found, z=torch.cat([z[None], found.z[1:]]), value=torch.cat([value, found.value[1:]])), left


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    starts: int = 8,
    steps: int = 1000,
    lr: float = 0.1,
    optimizer: Optimizer = "adam",
    beta2: float = BETA2,
    decay: Decay = "cosine",
    box: bool = False,
    consensus: float = 0.0,
    newton: int = 0,
    polish: int = 10,
    begin: str = "",
) -> Posterior:
    """The MAP as a posterior of one draw.

    Args:
        starts: prior draws to climb from, all in one batch.
        steps: optimisation steps, at most: a climb without a schedule (lbfgs, or decay none) ends at its maximum.
        lr: Adam's first learning rate, in prior standard deviations a step; in the sites' own units with a box.
        optimizer: adam; signed_adam, on the signs of the slopes; lbfgs for smooth models (with a box, L-BFGS-B).
        beta2: of Adam: how much of its second moment a step keeps. Published attacks have 0.999.
        decay: of Adam's learning rate: cosine to zero; step, a tenth after 3/8, 5/8 and 7/8 of all steps; exponential,
            0.94 a step; none.
        box: climb bounded sites (pixels) as they are, clamped after every step; else in unconstrained coordinates.
        consensus: strength of a pull of all starts towards their mean, in nats per squared unit of the coordinates.
        newton: steps of Newton's method, at most, from the best end; each takes a Hessian-vector product a coordinate.
        polish: truncated Newton steps, at most, that follow Adam on its cosine outside a box where more than 0.01 nats
            are left; never more than one for every 100 of `steps`, so that a short climb stays short.
        begin: an inference that reads images off the gradient (quotient, spear, tensor, imprint, rgap): one of the
            starts is what it finds. A small lr stays near it.
    """
    require_positive(starts=starts, steps=steps, lr=lr)
    for name, number in (("newton", newton), ("polish", polish)):
        if number < 0:
            raise BadInput(f"{name} must not be negative, not {number}: it is a number of steps")
    if not 0 <= beta2 < 1:
        raise BadInput(f"beta2 must lie between 0 and 1, and below 1, not {beta2:g}")
    if newton and box:
        raise BadInput("Newton's method does not keep to a box: leave newton or box out")
    if not 0 <= consensus < math.inf:
        raise BadInput(f"consensus must not be negative, not {consensus}")
    if consensus and optimizer == "lbfgs":
        raise BadInput("L-BFGS searches along the log-density alone: consensus needs adam or signed_adam")
    pyro.set_rng_seed(seed)
    density, bounds = build(model, client, observed, moves=True), None
    if density.moved and not density.dim:
        raise BadInput("the unknowns of this model are all discrete, and map climbs along slopes: take an inference "
                       "that moves through them, isir of sentences or gibbs of records")  # fmt: skip
    if box:
        density, bounds = boxed(density)
    how: dict[str, Any] = {"lr": lr, "optimizer": optimizer, "beta2": beta2, "decay": decay, "box": bounds,
                           "consensus": consensus}  # fmt: skip
    if begin:
        if density.moved:
            raise BadInput("the search moves through labels or orders here, from starts of its own: leave begin out, "
                           "or give the labels")  # fmt: skip
        near, others = starts_.read_off(density, begin, seed, progress), density.sample_prior(starts)[1:]
        how["begin"] = torch.cat([near, others])
    if set(density.moved) == {"codes"} and observed.labels is not None:
        nodes = traced(model, client, observed.batch_size).nodes
        how |= {"starts": starts, "steps": steps, "seed": seed, "progress": progress}
        found, values = cell_climb.climb(density, nodes["codes"]["infer"]["records"], **how)
        density = density.fixed(values)
    elif density.moved:
        found, values = moves.climb(density, starts=starts, steps=steps, progress=progress, **how)
        density = density.fixed(values)
    else:
        found = maximise(density, starts=starts, steps=steps, progress=progress, **how)
    reasons, rested, climbed = [], False, found.value
    if newton and not found.interrupted:
        found, rested = _polished(density, found, newton, progress)
    default = (optimizer, decay, box, consensus, newton) == ("adam", "cosine", False, 0.0, 0)
    found, left = _left(density, found, bounds, min(polish, steps // PRICE) if default else 0, progress)
    if found.interrupted:
        reasons.append(f"interrupted after {len(found.curve)} of {steps} steps: the best iterate so far is kept")
    late = found.curve[-max(1, len(found.curve) // 5) :, 0]
    gain = float(late.max() - late[0])
    if left is not None and left.doubt:
        reasons.append(left.doubt)
    elif (left is None or left.at_least) and gain > 1 and not rested:  # no curvature to judge by
        reasons.append(f"still climbing: {gain:.1f} nats gained in the last fifth of the steps")
    if len(climbed) > 1 and climbed[1] < climbed[0] - 1:
        reasons.append("no two starts ended at the same height: there may be a higher maximum (more steps or starts)")
    ends = density.images(found.z)[0].double()
    apart = (ends - ends[0]).square()
    return collect(
        density,
        found.z[None, :1],
        mode=found.z[0],
        kind="point",
        stats={"lp": found.value[None, :1]},
        curves={"log_density": found.curve},
        reasons=reasons,
        attrs={
            "starts_log_density": found.value.tolist(),
            "starts_rms": apart.flatten(1).mean(1).sqrt().tolist(),
            "nats_left": left and left.number,
            "moved": sorted(density.moved) or None,
            "order": density.given["order"][0].tolist() if "order" in density.given else None,
        },
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
