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

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.inference._boxed import Box, boxed, lbfgsb
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent

Optimizer = Literal["adam", "signed_adam", "lbfgs"]
Decay = Literal["cosine", "step", "exponential", "none"]
RECORDED = 300  # steps from which on it pays to record a density


@dataclass(frozen=True, eq=False)
class Maximum:
    """The best iterate of every start, best start first.

    z (starts, dim), value (starts,) its log-density, curve (steps, starts) the log-density along the way,
    start (starts,) which start each of them is, interrupted: True where Ctrl-C ended the climb.
    """

    z: Tensor
    value: Tensor
    curve: Tensor
    start: Tensor
    interrupted: bool

    def whole(self) -> Maximum:
        """Itself, for what half a search is no use to; raises KeyboardInterrupt where it was interrupted."""
        if self.interrupted:
            raise KeyboardInterrupt
        return self


def maximise(
    density: Density,
    *,
    starts: int = 8,
    steps: int = 400,
    lr: float = 0.1,
    optimizer: Optimizer = "adam",
    decay: Decay = "cosine",
    box: Box | None = None,
    consensus: float = 0.0,
    jacobian: bool = False,
    begin: Tensor | None = None,
    progress: ProgressBar = silent,
) -> Maximum:
    """Climb log p(z | g) from `starts` prior draws at once, or from `begin` (starts, dim).

    Without a box, L-BFGS sees the sum over the starts, and one line search serves all of them; with one, it is
    scipy's L-BFGS-B, start by start. Draws the starts by torch's generator.

    Args:
        decay: of the learning rate of Adam, see `rates`. box: where z is clamped to after every step.
        consensus: c of a pull −c ‖z − z̄‖² of every start towards the mean of all; no part of the log-density.
    """
    z = (density.sample_prior(starts) if begin is None else begin.detach().clone()).requires_grad_()
    starts = len(z)
    direct = steps >= RECORDED and box is not None and not density.bounded  # no Jacobian: what a recording knows
    if optimizer == "lbfgs" and box is not None:
        one = density.recorded(1) if direct else functools.partial(density.value_and_grad, jacobian=jacobian)
        found, heights, interrupted = lbfgsb(one, z, box, steps, progress)
        order = heights[-1].argsort(descending=True)
        return Maximum(found[order], heights[-1, order], heights[:, order], order, interrupted)
    evaluate = density.recorded(starts) if direct else functools.partial(density.value_and_grad, jacobian=jacobian)
    best, best_z = torch.full((starts,), -math.inf, dtype=torch.float64, device=z.device), z.detach().clone()
    curve: list[Tensor] = []
    interrupted = False

    def look() -> float:
        """−Σ log p at the current iterates, with its gradient; remembers the best of each start."""
        value, gradient = evaluate(z.detach())
        better = value > best
        best[better], best_z[better] = value[better], z.detach()[better]
        curve.append(value)
        if consensus:
            gradient = gradient - 2 * consensus * (z.detach() - z.detach().mean(0))
        downhill = -torch.nan_to_num(gradient)
        z.grad = downhill.sign() if optimizer == "signed_adam" else downhill
        return -float(torch.nan_to_num(value, nan=-1e30).sum())

    if optimizer == "lbfgs":
        climb: torch.optim.Optimizer = torch.optim.LBFGS(
            [z], lr=1.0, max_iter=1, history_size=20, line_search_fn="strong_wolfe"
        )
    else:
        climb = torch.optim.Adam([z], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(climb, rates("none" if optimizer == "lbfgs" else decay, steps))
    try:
        for _ in progress("MAP", steps):
            climb.step(look)
            schedule.step()
            if box is not None:
                box.clamp_(z.detach())
        look()
    except KeyboardInterrupt:
        if not curve:
            raise
        interrupted = True
    order = best.argsort(descending=True)
    return Maximum(best_z[order], best[order], torch.stack(curve)[:, order], order, interrupted)


def peaks(density: Density, *, starts: int, steps: int, progress: ProgressBar = silent) -> tuple[Tensor, Tensor]:
    """Where samplers and fits begin: the MAP (dim,) of the model's own sites, and the ends (k, dim) of a search in the
    density of z that lie within 10 nats of the best, best first.

    The two differ by a Jacobian where a site is bounded, so such a model is climbed twice.
    """
    found = maximise(density, starts=starts, steps=steps, progress=progress).whole()
    mode = found.z[0]
    if density.bounded:
        found = maximise(density, starts=starts, steps=steps, jacobian=True, progress=progress).whole()
    return mode, found.z[found.value > found.value[0] - 10]


def _polished(density: Density, found: Maximum, newton: int, progress: ProgressBar) -> tuple[Maximum, bool]:
    """The maximum with its best start climbed by Newton steps, and whether they came to rest."""
    from pplleak.inference.laplace import climb_by_newton  # which begins at what this file finds

    try:
        z, curvature = climb_by_newton(density, found.z[0], newton, jacobian=False, progress=progress)
    except KeyboardInterrupt:
        return replace(found, interrupted=True), False
    with torch.no_grad():
        value = density(z[None], jacobian=False)
    ends, values = torch.cat([z[None], found.z[1:]]), torch.cat([value, found.value[1:]])
    return replace(found, z=ends, value=values), curvature is not None


def rates(decay: Decay, steps: int) -> Callable[[int], float]:
    """step t -> the factor of the learning rate.

    cosine: half a wave down to 0. step: a tenth after 3/8, 5/8 and 7/8 of all steps (Geiping et al. 2020, their code).
    exponential: 0.94 a step (Balunović et al. 2022, their code). none: 1.
    """
    return {
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)),
        "step": lambda t: 0.1 ** sum(8 * t >= k * steps for k in (3, 5, 7)),
        "exponential": lambda t: 0.94**t,
        "none": lambda t: 1.0,
    }[decay]


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
