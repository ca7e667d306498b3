"""Maximum a posteriori: the single most probable reconstruction (a point, without uncertainty).

    x̂ = argmax over x of log p(g | x, y) + log p(x)          (Balunović et al. 2022, section 4, for δ → 0)

Adam, signed Adam or L-BFGS climbs from several starts in one batch, without the Jacobian of the coordinates, so that
the maximum is that of the model's own sites. Bounded sites are climbed in unconstrained coordinates, or, as the
published attacks do it, as they are, kept in their box after every step. The best iterate of the best start is
kept, never just the last.

Such climbs find a peak that is much sharper in some directions than in others, and do not get up: where the density is
smooth, `newton` steps on the whole Hessian can follow, from the best start.

A published attack is its model under its own settings: the model's file says them (`MAP`), and they are the defaults.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pyro
import torch

from pplleak.client import Client
from pplleak.density import Density, Model, build
from pplleak.density.box import boxed
from pplleak.density.search import Decay, Maximum, Optimizer, maximise
from pplleak.density.whitening import climb_by_newton
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent


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
    decay: Decay = "cosine",
    box: bool = False,
    consensus: float = 0.0,
    newton: int = 0,
) -> Posterior:
    """The MAP as a posterior of one draw.

    Args:
        starts: prior draws to climb from, all in one batch.
        steps: optimisation steps.
        lr: Adam's first learning rate, in prior standard deviations a step; in the sites' own units with a box.
        optimizer: adam; signed_adam, on the signs of the slopes; lbfgs for smooth models (with a box, L-BFGS-B).
        decay: of Adam's learning rate: cosine to zero; step, a tenth after 3/8, 5/8 and 7/8 of all steps; exponential,
            0.94 a step; none.
        box: climb bounded sites (pixels) as they are, clamped after every step; else in unconstrained coordinates.
        consensus: strength of a pull of all starts towards their mean, in nats per squared unit of the coordinates.
        newton: steps of Newton's method, at most, from the best end; each takes a Hessian-vector product a coordinate.
    """
    require_positive(starts=starts, steps=steps, lr=lr)
    if newton < 0:
        raise BadInput(f"newton must not be negative, not {newton}: it is a number of steps")
    if newton and box:
        raise BadInput("Newton's method does not keep to a box: leave newton or box out")
    if not 0 <= consensus < math.inf:
        raise BadInput(f"consensus must not be negative, not {consensus}")
    if consensus and optimizer == "lbfgs":
        raise BadInput("L-BFGS searches along the log-density alone: consensus needs adam or signed_adam")
    pyro.set_rng_seed(seed)
    density, bounds = build(model, client, observed), None
    if box:
        density, bounds = boxed(density)
    found = maximise(
        density, starts=starts, steps=steps, lr=lr, optimizer=optimizer, decay=decay,
        box=bounds, consensus=consensus, progress=progress,
    )  # fmt: skip
    reasons, rested, climbed = [], False, found.value
    if newton and not found.interrupted:
        found, rested = _polished(density, found, newton, progress)
    if found.interrupted:
        reasons.append(f"interrupted after {len(found.curve)} of {steps} steps: the best iterate so far is kept")
    late = found.curve[-max(1, len(found.curve) // 5) :, 0]
    gain = float(late.max() - late[0])
    if gain > 1 and not rested:
        reasons.append(f"still climbing: {gain:.1f} nats gained in the last fifth of the steps")
    if starts > 1 and climbed[1] < climbed[0] - 1:
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
        attrs={"starts_log_density": found.value.tolist(), "starts_rms": apart.flatten(1).mean(1).sqrt().tolist()},
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
