"""Refractive Hamiltonian Monte Carlo: exact draws from the posterior of a ReLU or leaky-ReLU perceptron.

A ReLU client's gradient jumps where a unit switches, and so does U(w) = −log p(z(w) | g). Between the kinks U is
smooth and every pre-activation is affine in w. In coordinates whitened by the mean fixed-mask curvature, U = ½w² + R:
the flow of ½w² + ½p² is a rotation, along which the next kink of every unit is known in closed form,

    h_j(t) = c + (h_j − c) cos t + ḣ_j sin t = 0;   at the earliest, n its unit normal, p⊥ = p·n, ΔU the jump:
    p⊥² > 2ΔU:  cross,    p⊥ → sign(p⊥) √(p⊥² − 2ΔU),  unit j switches
    otherwise:  reflect,  p⊥ → −p⊥

(Mohasel Afshar & Domke, NeurIPS 2015, algorithm 1; the rotation is Pakman & Paninski's, 2014.) Half-kicks with the
fixed-mask force of R stand at both ends, a Metropolis test on the total energy ends the trajectory; the map keeps
volume and is its own inverse under p → −p.

Now and then a unit's two sides are two modes with little between them, and a chain changes sides once in a hundred
draws: few chains and many draws serve better than the reverse. Needs x affine in Gaussian latents (the prior
`gaussian`), one example, its label and Gaussian noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Model
from pplleak.density.chains import keep
from pplleak.density.kinks.perceptron import Perceptron
from pplleak.density.kinks.perceptron_posterior import Affine, obstacle, prepare, read_affine
from pplleak.density.kinks.refraction import Quadratic, State, Target, energy_and_force, parts, place, step
from pplleak.density.resampling import resample
from pplleak.density.starts import read_off
from pplleak.density.step_size import MAX_STEPS, TRAJECTORY, DualAveraging, trajectory_steps
from pplleak.density.whitening import Laplace, locate, starting_points
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent

HOT = 5.0  # the noise that warm-up begins with, in units of σ


def aim(net: Perceptron, affine: Affine, laplace: Laplace) -> Target:
    """The target in the coordinates z = mode + L w of a Laplace fit."""
    first, factor = net.layers[0], laplace.factor
    x, slope = affine.offset + affine.slope @ laplace.mode, affine.slope @ factor
    H, Q = first.weight @ slope, first.g_weight @ slope
    root = torch.linalg.cholesky(affine.precision).mT
    sqnorm = Quadratic.of(slope, x)
    HM = sqnorm.times(H)
    seen = torch.cat([H, Q, HM])
    return Target(
        net,
        first.weight @ x + first.bias,
        H,
        first.g_weight @ x + first.g_bias,
        Q,
        HM,
        H @ sqnorm.b,
        seen,
        H @ seen.mT,
        sqnorm,
        Quadratic.of(root @ factor, root @ (laplace.mode - affine.centre)),
    )


def axes(affine: Affine, laplace: Laplace) -> Laplace:
    """The Laplace fit with its widths along the axes of x alone: L = V diag(ℓ), V the right singular vectors of slope.

    ‖x‖² is then diagonal in w, and so is a standard normal prior, which keeps the steps cheap. `refit` follows it.
    """
    gram = affine.slope.mT @ affine.slope
    basis = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if float((gram - gram.diagonal().diag()).abs().max()) > 1e-10 * float(gram.max()):
        basis = torch.linalg.eigh(gram).eigenvectors
    widths = (basis.mT @ laplace.factor).square().sum(1).sqrt()
    return Laplace(laplace.mode, basis * widths, float(widths.log().sum()), laplace.flat)


def declines(model: Model, observed: Observation, client: Client) -> str:
    """Why this sampler does not apply, "" where it does: what `pplleak.studies.attack.choose` asks."""
    return obstacle(model, observed, client)


def warm_up(
    net: Perceptron, affine: Affine, laplace: Laplace, w: Tensor, iterations: int, progress: ProgressBar = silent
) -> tuple[Laplace, Target, State, float]:
    """Cool the chains onto the target, correct the widths of the Laplace fit by those that they see, and find ε.

    A unit that the search for the MAP left on the wrong side of its kink stays there, tens of nats above the rest,
    for longer than any run: so the first two fifths of the trajectories cool from HOT σ to σ, and the chains are
    resampled on the way by their annealed importance weights (sequential Monte Carlo, Del Moral et al. 2006).
    """
    target = aim(net, affine, laplace)
    state, tuner = place(target, w), DualAveraging.start(0.2)
    cool, tune = int(0.4 * iterations), int(0.6 * iterations)
    seen: list[State] = []
    heat = HOT if cool else 1.0
    for t in progress("warm-up", iterations):
        size = min(TRAJECTORY, math.exp(tuner.log_step))
        if t < cool:
            cooler = HOT ** (1 - (t + 1) / cool)
            state, heat = resampled(target, state, cooler**-2 - heat**-2), cooler
        heated = replace(target, net=replace(net, sigma=net.sigma * heat))
        state, _, info, _ = step(heated, state, size, min(trajectory_steps(size), 6 if t < cool else MAX_STEPS))
        tuner = tuner.update(float(info.acceptance.mean()))
        if cool <= t < tune:
            seen.append(state)
        if t == tune and seen:
            laplace, w = refit(target, laplace, seen)
            target = aim(net, affine, laplace)
            state, tuner = place(target, w), DualAveraging.start(0.3)
    return laplace, target, state, min(TRAJECTORY, math.exp(tuner.log_average))


def refit(target: Target, laplace: Laplace, seen: list[State], patterns: int = 16) -> tuple[Laplace, Tensor]:
    """The Gaussian whose force is nearest to the fixed-mask one; returns it, and the last of `seen` in its coordinates.

    Precision: the mean over masks of the fixed-mask Hessian. Centre: where that Gaussian's mean force is the mean
    fixed-mask force, mean(w) − precision⁻¹ mean(∇U). The jumps push the draws off that centre, and only the events
    know of them: a Gaussian fitted to the draws themselves would leave a larger force to the kicks.
    """
    last = seen[-1]
    precision = curvature(target, State(*(part[:patterns] for part in parts(last))))
    force = torch.cat([energy_and_force(target, s)[1] for s in seen]).mean(0)
    centre = torch.cat([s.w for s in seen]).mean(0) - torch.linalg.solve(precision, force)
    values, vectors = torch.linalg.eigh(precision)
    scale = values.abs().clamp(min=0.01).rsqrt()
    basis = vectors * scale
    turn = torch.linalg.eigh(basis.mT @ dense(target.sqnorm) @ basis).eigenvectors  # ‖x‖² diagonal: see `axes`
    log_det = laplace.log_det + float(scale.log().sum())
    fitted = Laplace(laplace.decode(centre[None])[0], laplace.factor @ basis @ turn, log_det, laplace.flat)
    return fitted, (last.w - centre) @ (vectors / scale) @ turn


def curvature(target: Target, state: State) -> Tensor:
    """∇²U with the masks held fixed, averaged over the chains, (dim, dim)."""
    b = target.sqnorm.b + target.sqnorm.times(state.w)  # ∇‖x‖² / 2
    sqnorm, maps = target.sqnorm.value(state.w), torch.cat([target.H, target.Q])
    width = state.h.shape[1]
    total = torch.zeros(len(target.sqnorm.b), len(target.sqnorm.b), dtype=b.dtype, device=b.device)
    blocks = torch.zeros(2 * width, 2 * width, dtype=b.dtype, device=b.device)
    by_sqnorm = 0.0
    for k in range(len(b)):

        def phi(seen: Tensor, masks: Tensor = state.masks[k : k + 1]) -> Tensor:
            return target.net.energy(seen[None, :width], seen[None, width : 2 * width], seen[-1:], masks)[0]

        at = torch.cat([state.h[k], state.q[k], sqnorm[k : k + 1]])
        second = torch.autograd.functional.hessian(phi, at, vectorize=True)
        by_sqnorm += float(torch.autograd.functional.jacobian(phi, at)[-1])
        blocks += second[:-1, :-1]
        cross = torch.outer(second[-1, :-1] @ maps, 2 * b[k])
        total += cross + cross.mT + 4 * second[-1, -1] * torch.outer(b[k], b[k])
    total = (total + maps.mT @ blocks @ maps + 2 * by_sqnorm * dense(target.sqnorm)) / len(b) + dense(target.prior)
    return (total + total.mT) / 2


def dense(form: Quadratic) -> Tensor:
    return form.m if form.m.dim() == 2 else form.m.diag()


def resampled(target: Target, state: State, rise: float) -> State:
    """Chains drawn anew in proportion to exp(−rise Φ), systematically: `rise` is the likelihood's gain in exponent."""
    phi = target.net.energy(state.h, state.q, target.sqnorm.value(state.w), state.masks)
    picks = resample(-rise * phi[None])[0]
    return State(*(part[picks] for part in parts(state)))


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    chains: int = 16,
    draws: int = 2000,
    warmup: int = 100,
    starts: int = 8,
    steps: int = 400,
    begin: str = "",
) -> Posterior:
    """Draws from p(x | g, y), exact for ReLU and leaky-ReLU perceptrons. Ctrl-C keeps what has been drawn.

    Args:
        chains: Markov chains, all advanced in one batch.
        draws: draws a chain, after warm-up.
        warmup: trajectories that tune the step size and are thrown away.
        starts: prior draws the search for the MAP starts from.
        steps: its Adam steps.
        begin: an inference that reads images off the gradient (quotient, spear, tensor, imprint, rgap): the search
            climbs from what it finds, too, and the chains start there if that is the best.
    """
    require_positive(chains=chains, draws=draws, warmup=warmup, starts=starts, steps=steps)
    pyro.set_rng_seed(seed)
    density, net = prepare(model, observed, client)
    affine = read_affine(density)
    near = read_off(density, begin, seed, progress) if begin else None
    found = locate(density, starts=starts, steps=steps, begin=near, progress=progress)
    z = found.base.decode(starting_points(found, chains))
    laplace = axes(affine, found.base)
    w = torch.linalg.solve(laplace.factor, (z - laplace.mode).mT).mT
    laplace, target, state, size = warm_up(net, affine, laplace, w, warmup, progress)
    leapfrogs = trajectory_steps(size)

    def chain(state: State) -> Iterator[dict[str, Tensor]]:
        while True:
            state, energy, info, events = step(target, state, size, leapfrogs)
            yield {"z": laplace.decode(state.w), "lp": -energy, **info.stats, "kinks": events}

    stats, reasons = keep(chain(state), draws, progress)
    return collect(
        density,
        stats.pop("z"),
        mode=found.mode,
        kind="sampler",
        stats=stats,
        reasons=[*found.left.doubts, *reasons],
        attrs={"step_size": size, "leapfrog_steps": leapfrogs, "nats_left": found.left.number},
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
