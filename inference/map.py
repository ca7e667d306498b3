"""Maximum a posteriori: the single most probable reconstruction (a point, without uncertainty).

    x̂ = argmax over x of log p(g | x, y) + log p(x)          (Balunović et al. 2022, eq. 4 with δ → 0)

Adam (or L-BFGS) climbs from several starts in one batch, in unconstrained coordinates but without their Jacobian, so
that the maximum is that of the model's own sites. The best iterate of the best start is kept, never just the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pyro
import torch
from torch import Tensor

from pplleak import density as densities
from pplleak.clients import Client
from pplleak.density import Density, Model
from pplleak.errors import require_positive
from pplleak.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent


@dataclass(frozen=True, eq=False)
class Maximum:
    """The best iterate of every start, best start first.

    z (starts, dim), value (starts,) its log-density, curve (steps, starts) the log-density along the way,
    interrupted: True where Ctrl-C ended the climb.
    """

    z: Tensor
    value: Tensor
    curve: Tensor
    interrupted: bool


def maximise(
    density: Density,
    *,
    starts: int = 8,
    steps: int = 400,
    lr: float = 0.1,
    optimizer: Literal["adam", "lbfgs"] = "adam",
    jacobian: bool = False,
    begin: Tensor | None = None,
    progress: ProgressBar = silent,
) -> Maximum:
    """Climb log p(z | g) from `starts` prior draws at once, or from `begin` (starts, dim); `lr` decays by a cosine.

    L-BFGS sees the sum over the starts: one line search serves all of them. Draws the starts by torch's generator.
    """
    z = (density.sample_prior(starts) if begin is None else begin.detach().clone()).requires_grad_()
    starts = len(z)
    best, best_z = torch.full((starts,), -math.inf, dtype=torch.float64, device=z.device), z.detach().clone()
    curve: list[Tensor] = []
    interrupted = False

    def look() -> float:
        """−Σ log p at the current iterates, with its gradient; remembers the best of each start."""
        value, gradient = density.value_and_grad(z, jacobian=jacobian)
        better = value > best
        best[better], best_z[better] = value[better], z.detach()[better]
        curve.append(value)
        z.grad = -torch.nan_to_num(gradient)
        return -float(torch.nan_to_num(value, nan=-1e30).sum())

    if optimizer == "adam":
        climb: torch.optim.Optimizer = torch.optim.Adam([z], lr=lr)
    else:
        climb = torch.optim.LBFGS([z], lr=1.0, max_iter=1, history_size=20, line_search_fn="strong_wolfe")
    schedule = torch.optim.lr_scheduler.LambdaLR(
        climb, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)) if optimizer == "adam" else 1.0
    )
    try:
        for _ in progress("MAP", steps):
            climb.step(look)
            schedule.step()
        look()
    except KeyboardInterrupt:
        if not curve:
            raise
        interrupted = True
    order = best.argsort(descending=True)
    return Maximum(best_z[order], best[order], torch.stack(curve)[:, order], interrupted)


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
    optimizer: Literal["adam", "lbfgs"] = "adam",
) -> Posterior:
    """The MAP as a posterior of one draw.

    Args:
        starts: prior draws to climb from, all in one batch.
        steps: optimisation steps.
        lr: Adam's first learning rate, in prior standard deviations a step; it decays to zero.
        optimizer: adam, or lbfgs for smooth, well-conditioned models.
    """
    require_positive(starts=starts, steps=steps, lr=lr)
    pyro.set_rng_seed(seed)
    density = densities.build(model, client, observed)
    found = maximise(density, starts=starts, steps=steps, lr=lr, optimizer=optimizer, progress=progress)
    reasons = []
    if found.interrupted:
        reasons.append(f"interrupted after {len(found.curve)} of {steps} steps: the best iterate so far is kept")
    late = found.curve[-max(1, len(found.curve) // 5) :, 0]
    gain = float(late.max() - late[0])
    if gain > 1:
        reasons.append(f"still climbing: {gain:.1f} nats gained in the last fifth of the steps")
    if starts > 1 and found.value[1] < found.value[0] - 1:
        reasons.append("no two starts ended at the same height: there may be a higher maximum (more steps or starts)")
    return collect(
        density,
        found.z[None, :1],
        mode=found.z[0],
        kind="point",
        stats={"lp": found.value[None, :1]},
        curves={"log_density": found.curve},
        reasons=reasons,
        attrs={"starts_log_density": found.value.tolist()},
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
