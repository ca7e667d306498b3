"""The search for a maximum of log p(z | g): many starts in one batch, Adam, signed Adam or L-BFGS.

Every start keeps its best iterate, never just the last. `peaks` is where samplers and fits begin.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pplleak.density import Density
from pplleak.density.box import Box, lbfgsb
from pplleak.density.decrement import ENOUGH, Decrement, decrement, settled
from pplleak.density.refusals import require_possible
from pplleak.progress import ProgressBar, silent

Optimizer = Literal["adam", "signed_adam", "lbfgs"]
Decay = Literal["cosine", "step", "exponential", "none"]
RECORDED = 300  # steps from which on it pays to record a density
GENTLE = 0.003  # Adam's first rate from latents that are near a maximum, in prior standard deviations a step
# Where the noise is small the slopes fall by orders of magnitude on the way up. Adam's usual 0.999 remembers the first
# ones for a thousand steps, and takes none that count in the meantime.
BETA2 = 0.95
LOOK = 50  # steps after which a climb without a schedule is asked whether it has ended


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
    beta2: float = BETA2,
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

    A climb whose rate follows a schedule takes all its steps, as does one in a box; any other ends before where no
    start has gained in the last LOOK steps and the best has less than ENOUGH nats left.

    Raises:
        BadInput: nowhere on the way of any start was the log-density a number above -inf.

    Args:
        beta2: of Adam, the weight of what was in its second moment, a step.
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
    evaluate = density.recorded(starts) if direct else density.in_parts(starts, jacobian=jacobian)
    best, best_z = torch.full((starts,), -math.inf, dtype=torch.float64, device=z.device), z.detach().clone()
    curve: list[Tensor] = []
    interrupted, reached = False, best.clone()
    steady = box is None and not consensus and (optimizer == "lbfgs" or decay == "none")
    log_density = functools.partial(density, jacobian=jacobian)

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
        climb = torch.optim.Adam([z], lr=lr, betas=(0.9, beta2))
    schedule = torch.optim.lr_scheduler.LambdaLR(climb, rates("none" if optimizer == "lbfgs" else decay, steps))
    try:
        for t in progress("MAP", steps):
            climb.step(look)
            schedule.step()
            if box is not None:
                box.clamp_(z.detach())
            if t == LOOK and float(best.max()) == -math.inf:
                break  # is refused below
            if steady and t % LOOK == LOOK - 1:
                risen, reached = float((best - reached).max()), best.clone()
                if risen < ENOUGH and decrement(log_density, best_z[int(best.argmax())]).nats < ENOUGH:
                    break
        look()
    except KeyboardInterrupt:
        if not curve:
            raise
        interrupted = True
    if not interrupted:
        require_possible(best)
    order = best.argsort(descending=True)
    return Maximum(best_z[order], best[order], torch.stack(curve)[:, order], order, interrupted)


def peaks(
    density: Density, *, starts: int, steps: int, begin: Tensor | None = None, progress: ProgressBar = silent
) -> tuple[Tensor, Tensor, Decrement]:
    """Where samplers and fits begin: the MAP (dim,) of the model's own sites, and the ends (k, dim) of a search in the
    density of z that lie within 10 nats of the best, best first; and what is left to climb from the MAP, which is
    polished where that is more than a nat.

    The two differ by a Jacobian where a site is bounded, so such a model is climbed twice.

    Args:
        begin: latents (k, dim), near a maximum, that are climbed from beside the `starts` prior draws, at a rate that
            stays near them.
    """

    def search(jacobian: bool) -> tuple[Tensor, Tensor]:
        climb = functools.partial(maximise, density, steps=steps, jacobian=jacobian, progress=progress)
        ends = [climb(starts=starts).whole()]
        if begin is not None:
            ends.append(climb(begin=begin, lr=GENTLE).whole())
        z, value = (torch.cat([getattr(end, name) for end in ends]) for name in ("z", "value"))
        order = value.argsort(descending=True, stable=True)
        return z[order], value[order]

    z, value = search(jacobian=False)
    mode, left = settled(functools.partial(density, jacobian=False), z[0])
    if density.bounded:
        z, value = search(jacobian=True)
    return mode, z[value > value[0] - 10], left


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
