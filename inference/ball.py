"""The δ-ball adversary: the reconstruction around which the density is high, and not only at it (a point).

    x̂ = argmax over x₀ of E_{x ~ U(B(x₀, δ))} [log p(g | x) + log p(x)]

(Balunović et al. 2022, section 4: their practical bound on the mass of p(x | g) in the ball.) B(x₀, δ) has radius δ in
L2 over the pixels of one example; a batch has one ball an example. Each step of Adam draws k offsets, in pairs ±e and
the same for every start (reparameterised: x = x₀ + e), and the starts are ranked on offsets common to all of them.

The ball is one of images, the model's coordinates z are not. Where x = mean + F z with F invertible, or x is the
logistic function of that (a model on the pixel box), z = z(x) and

    log p(g | x) + log p(x) = log p(z(x) | g) − log |dx/dz| + constant

so δ → 0 is the mode of p(x | g): `map`, wherever x is a site itself or an affine image of the sites. Offsets that leave
the pixel box are folded back at its edge, which takes nothing out of the ball. Where x has more latents than pixels
(a VAE), or bends them in another way, p(x) has no such form, and the model is refused.
"""

from __future__ import annotations

import math

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build
from pplleak.density.chart import Chart, chart
from pplleak.density.decrement import DOUBT, decrement
from pplleak.density.search import BETA2
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent


def offsets(count: int, examples: int, pixels: int, delta: float, device: torch.device | None = None) -> Tensor:
    """`count` (even) draws from U(B(0, δ)) for every example, in pairs ±e, (count, examples · pixels), float64."""
    shape = (count // 2, examples, pixels)
    direction = torch.randn(shape, dtype=torch.float64, device=device)
    radius = delta * torch.rand(*shape[:2], 1, dtype=torch.float64, device=device) ** (1 / pixels)
    e = (radius * direction / direction.norm(dim=-1, keepdim=True)).flatten(1)
    return torch.cat([e, -e])


def around(density: Density, at: Chart, z: Tensor, e: Tensor) -> Tensor:
    """log p(x | g) + constant at x = x₀(z) + e: z (starts, dim), e (k, dim) -> (k, starts)."""
    near = at.latents(at.image(z) + e[:, None]).flatten(0, 1)
    value = density(near.to(z.dtype)) - at.log_det(near)
    return value.unflatten(0, (len(e), len(z)))


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    delta: float = 1.0,
    samples: int = 8,
    starts: int = 4,
    steps: int = 500,
    lr: float = 0.1,
) -> Posterior:
    """The δ-ball reconstruction as a posterior of one draw.

    Args:
        delta: radius of the ball, in L2 over the pixels of one example (an RMS error r is r times the root of the
            number of pixels).
        samples: offsets drawn a step, an even number: they come in pairs.
        starts: prior draws to climb from, all in one batch.
        steps: optimisation steps.
        lr: Adam's first learning rate, in prior standard deviations a step; it decays to zero.
    """
    require_positive(delta=delta, samples=samples, starts=starts, steps=steps, lr=lr)
    if samples % 2:
        raise BadInput(f"samples must be even, not {samples}: offsets are drawn in pairs")
    pyro.set_rng_seed(seed)
    density = build(model, client, observed)
    at = chart(density)
    balls = (observed.batch_size, math.prod(client.input_shape), delta, client.device)
    z = density.sample_prior(starts).requires_grad_()
    climb = torch.optim.Adam([z], lr=lr, betas=(0.9, BETA2))
    schedule = torch.optim.lr_scheduler.LambdaLR(climb, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)))
    curve: list[Tensor] = []
    reasons: list[str] = []
    try:
        for _ in progress("δ-ball", steps):
            value = around(density, at, z, offsets(samples, *balls)).mean(0)
            z.grad = -torch.nan_to_num(torch.autograd.grad(value.sum(), z)[0])
            curve.append(value.detach())
            climb.step()
            schedule.step()
    except KeyboardInterrupt:
        if not curve:
            raise
        reasons.append(f"interrupted after {len(curve)} of {steps} steps: the last iterate is kept")
    # The iterates' own values are too noisy to choose by: the luckiest draw would win. Common offsets are fair.
    z = z.detach()
    with torch.no_grad():
        common = torch.cat([around(density, at, z, e) for e in offsets(64, *balls).split(samples)])
        lp = density(z, jacobian=False)
    common = torch.nan_to_num(common, nan=-math.inf)
    order = common.mean(0).argsort(descending=True)
    with torch.random.fork_rng(devices=[]):  # the draws of open labels stay those of the seed
        left = unclimbed(density, at, z[order[0]], offsets(32, *balls), offsets(64, *balls))
    traced = torch.stack(curve)[:, order]
    reasons += doubts(traced[:, 0], common[:, order])
    if left > DOUBT:
        reasons.append(f"not at a maximum: at least {left:.3g} nats left to climb")
    return collect(
        density,
        z[None, order[:1]],
        mode=z[order[0]],
        kind="point",
        stats={"lp": lp[None, order[:1]]},
        curves={"objective": traced},
        reasons=reasons,
        attrs={"delta": delta, "starts_objective": common.mean(0)[order].tolist(), "nats_left": left},
    )


def unclimbed(density: Density, at: Chart, z: Tensor, e: Tensor, other: Tensor) -> float:
    """Nats left to climb from z (dim,), at least: the step of the decrement on offsets e (k, dim), judged on others.

    The average over few offsets has a maximum of its own, near that of the expectation: what a step gains on the
    offsets it was made with flatters it. On others it is without bias, and two standard errors are taken off.
    """

    def objective(near: Tensor) -> Tensor:
        return torch.cat([around(density, at, near, part) for part in e.split(8)]).mean(0)

    step = decrement(objective, z, products=16)
    with torch.no_grad():
        value = torch.cat([around(density, at, torch.stack([step.best, z]), part) for part in other.split(8)])
    gained = value[:, 0] - value[:, 1]
    lower = float(gained.mean() - 2 * gained.std() / len(gained) ** 0.5)
    return lower if lower > 0 else 0.0  # also where it is not a number


def doubts(curve: Tensor, common: Tensor) -> list[str]:
    """What speaks against the climb: a trend in its last fifth (steps,), or starts (k, starts), best first, that ended
    at different heights; each beyond one nat and three standard errors."""
    reasons = []
    late = curve[-max(4, len(curve) // 5) :]
    if len(late) >= 4:
        early, last = late[: len(late) // 2], late[len(late) // 2 :]
        gain = float(last.mean() - early.mean())
        error = math.hypot(float(early.std()) / len(early) ** 0.5, float(last.std()) / len(last) ** 0.5)
        if not gain <= 1 + 3 * error:
            reasons.append(f"still climbing: {gain:.1f} nats gained in the last tenth of the steps")
    if common.shape[1] > 1:
        gap = common[:, 0] - common[:, 1]
        if not float(gap.mean()) <= 1 + 3 * float(gap.std()) / len(gap) ** 0.5:
            reasons.append(
                "no two starts ended at the same height: there may be a higher maximum (more steps or starts)"
            )
    return reasons


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
