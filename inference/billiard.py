"""Billiard Hamiltonian Monte Carlo: exact draws from the posterior of a ReLU convolutional client.

U(w) = −log p(z(w) | g) jumps wherever a rectifier switches. `pplleak.density.kinks.gates` divides the kinks: the
jumps at the dense
layers' units are large and few (walls), those at the convolutions' units and in max pooling tiny and many (gates).
A trajectory sees V(w; m), U with the walls' pattern m held and the gates softened. In coordinates whitened by the
mean fixed-mask curvature V = ½w² + R, and the flow of ½w² + ½p² is a rotation; only R is left to the kicks:

    p ← p − ε/2 ∇R;     (w, p) ← (w cos ε + p sin ε, p cos ε − w sin ε), meeting walls h_j(w) = 0;     p ← p − ε/2 ∇R
    at a wall, n = ∇h_j / ‖∇h_j‖, p⊥ = p·n, ΔV the jump of V when m_j switches there:
        p⊥² > 2ΔV:  cross,    p⊥ → sign(p⊥) √(p⊥² − 2ΔV),  m_j switches
        otherwise:  reflect,  p⊥ → −p⊥

(Mohasel Afshar & Domke, NeurIPS 2015, algorithm 1.) The next wall on an arc is found by bracketing, to rounding:
behind a convolution there is no closed form. Flux |p⊥| dp⊥ through a wall is kept, curved or not, so the map keeps
volume; it is its own inverse under p → −p, which every drift that met a wall is checked for. "∇V" runs through softened
derivatives alone, and need not be V's own slope: any force that depends on (w, m) only keeps both properties. A
Metropolis test on the exact U ends the trajectory: what the gates leave out costs acceptance, never exactness.

A draw costs as many forces as there are steps, and one to two more for every wall. Short trials say which of a few
sharpnesses β of the gates, and which number of steps, promise most effective draws for that: an acceptance that is
aimed at has no answer where no smaller step brings back what U and V differ by. ΔV is that of the layers
from the first wall on, and guesses what those before it add, where a trial finds that near enough (`Field.jump`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build, ellipses
from pplleak.density.chains import copies, keep, require_superchains
from pplleak.density.kinks import perceptron_posterior
from pplleak.density.kinks.billiard import State, place, step
from pplleak.density.kinks.gates import Gated, Idle, gated
from pplleak.density.kinks.tuning import SHARPNESS, trials
from pplleak.density.kinks.walls import Field
from pplleak.density.starts import read_off
from pplleak.density.step_size import TRAJECTORY, DualAveraging, jittered, trajectory_steps
from pplleak.density.whitening import Laplace, locate, starting_points
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent
from pplleak.runs.parallel import shares, side_by_side

HOT = 5.0  # the noise that warm-up begins with, in units of σ
SHORTEST, LONGEST = 0.05, 0.5  # step size, while dual averaging still guesses


def soften(density: Density, gates: Gated, laplace: Laplace) -> Field:
    """The target in the coordinates z = mode + L w of a Laplace fit."""
    return Field(density, replace(density, client=gates.client), replace(density, client=Idle.of(density.client)),
                 gates, laplace).with_images()  # fmt: skip


def declines(model: Model, observed: Observation, client: Client) -> str:
    """Why this sampler does not apply, "" where it does: what `pplleak.studies.attack.choose` asks. Where
    the posterior has a closed form between its kinks, `refractive` is much faster; where it is hardly narrower than the
    prior, `elliptical`."""
    try:
        gated(client, 1.0)
    except BadInput as error:
        return str(error)
    if not perceptron_posterior.obstacle(model, observed, client):
        return "billiard leaves it to refractive, which is faster"
    wide = not ellipses.narrow(model, observed, client)
    return "billiard leaves it to elliptical, which is faster" if wide else ""


def warm_up(
    field: Field, w: Tensor, iterations: int, betas: tuple[float, ...] = SHARPNESS, progress: ProgressBar = silent
) -> tuple[Field, State, int]:
    """Cool the chains onto the target, fit the Gaussian whose force is nearest to theirs, find β and the steps.

    The search for the MAP ends in one cell of many, and leaves units on the wrong side of walls that are tens of nats
    high: so the first two fifths of the trajectories cool from HOT σ to σ. Where a chain ends is a lottery all the
    same, and some leave a low region only after a hundred draws: such chains begin again elsewhere (`untrapped`).
    """
    cool, tune = int(0.4 * iterations), int(0.6 * iterations)
    heat = HOT if cool else 1.0
    state, tuner = place(field, w, heat**-2), DualAveraging.start(0.2)
    seen: list[State] = []
    for t in progress("warm-up", tune):
        size = max(SHORTEST, min(LONGEST, math.exp(tuner.log_step)))
        if t < cool:
            heat = HOT ** (1 - (t + 1) / cool)
            state = place(field, state.w, heat**-2)
        state, _, walk = step(field, state, jittered(size), trajectory_steps(size), heat**-2)
        tuner = tuner.update(float(walk.soft_acceptance.mean()))
        if cool <= t:
            seen.append(state)
    if seen:
        which = untrapped(torch.stack([state.energy for state in seen]), w.shape[1])
        field, w = refit(field, [state.rows(which) for state in seen], progress)
        state = place(field, w)
    return trials(field, state, iterations - tune, betas, progress)


def untrapped(energy: Tensor, dim: int) -> Tensor:
    """Which chain each goes on from, (chains,), by U (draws, chains): its own state, or that of another.

    U of a draw has a standard deviation of √(dim / 2) where the posterior is nearly Gaussian. A chain whose mean over
    the last three quarters of the draws is further above the lowest one's than that has not found the bulk.
    """
    mean = energy[len(energy) // 4 :].mean(0)
    which, low = torch.arange(len(mean), device=mean.device), mean <= mean.min() + math.sqrt(dim / 2)
    kept, others = which[low], which[~low]
    return which.index_copy(0, others, kept[torch.arange(len(others), device=mean.device) % len(kept)])


def refit(field: Field, seen: list[State], progress: ProgressBar = silent, patterns: int = 4) -> tuple[Field, Tensor]:
    """The field around the Gaussian whose force is nearest to V's, and the last of `seen` in its coordinates.

    Precision: the slope of the force with the walls held, averaged over `patterns` of the states, at times far apart
    and in different chains (chains may be copies of each other at the end); differences over a standard
    deviation see the mean of the many small kinks, which no derivative does. Centre: where that Gaussian's mean
    force is the mean force, mean(w) − precision⁻¹ mean(∇V).
    """
    last, laplace = seen[-1], field.laplace
    dim = last.w.shape[1]
    precision = torch.zeros(dim, dim, dtype=torch.float64, device=last.w.device)
    axes = torch.eye(dim, dtype=last.w.dtype, device=last.w.device)
    for k in progress("metric", patterns):
        slopes, at, sign = [], seen[-1 - k * len(seen) // patterns], 1 - 2 * (k % 2)
        w, held, here = (value[k % len(last.w)] for value in (at.w, at.pattern, at.force))
        for part in axes.split(64):
            _, force = field.soft_energy_and_force(w + sign * part, held.expand(len(part), -1), 1.0)
            slopes.append(sign * (force - here).double())
        precision += torch.cat(slopes) / patterns
    precision = (precision + precision.mT) / 2
    force, mean = (torch.cat([getattr(s, n) for s in seen]).double().mean(0) for n in ("force", "w"))
    values, vectors = torch.linalg.eigh(precision)
    scale = values.clamp(min=0.05).rsqrt()
    centre = mean - (vectors * scale**2) @ (vectors.mT @ force)
    basis, inverse = (b.to(last.w.dtype) for b in (vectors * scale, vectors / scale))
    fitted = replace(
        laplace,
        mode=laplace.decode(centre[None].to(last.w.dtype))[0],
        factor=laplace.factor @ basis,
        log_det=laplace.log_det + float(scale.log().sum()),
    )
    return field.whitened(fitted), (last.w - centre.to(last.w.dtype)) @ inverse


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    chains: int = 16,
    draws: int = 250,
    warmup: int = 100,
    starts: int = 8,
    steps: int = 400,
    begin: str = "",
    beta: float = 0.0,
    processes: int = 2,
    superchains: int = 0,
    settle: int = 20,
) -> Posterior:
    """Draws from p(x, y | g), exact for clients with ReLU, leaky ReLU and max pooling. Ctrl-C keeps what was drawn.

    Args:
        chains: Markov chains, all advanced in one batch.
        draws: draws a chain, after warm-up.
        warmup: trajectories that tune the step size and are thrown away.
        starts: prior draws the search for the MAP starts from.
        steps: its Adam steps.
        begin: an inference that reads images off the gradient (quotient, spear, tensor, imprint, rgap): the search
            climbs from what it finds, too, and the chains start there if that is the best.
        beta: sharpness of the gates, per unit of a pre-activation: sharper is closer, and needs smaller steps. 0: the
            best of some, found in warm-up.
        processes: groups of chains, each drawn by a process of its own; the draws depend on their number, and not on
            the machine's. An accelerator draws all chains in one.
        superchains: warm up so many chains alone, go on from each with as many copies as make `chains` of them, and
            judge these groups (nested R-hat): a draw of many chains in one batch costs less, on an accelerator by far.
        settle: draws in which the copies part, and which are thrown away.
    """
    require_positive(chains=chains, draws=draws, warmup=warmup, starts=starts, steps=steps, processes=processes)
    require_superchains(chains, superchains, settle)
    if not (math.isfinite(beta) and beta >= 0):
        raise BadInput(f"beta must be a positive number, or 0 for one that is found in warm-up, not {beta:g}")
    if not client.kinks:
        raise BadInput("inference billiard is for networks with kinks, and this one is smooth: use hmc")
    pyro.set_rng_seed(seed)
    betas = (beta,) if beta else SHARPNESS
    gates = gated(client, betas[0])
    density = build(model, client, observed)
    near = read_off(density, begin, seed, progress) if begin else None
    found = locate(density, starts=starts, steps=steps, begin=near, progress=progress)
    field = soften(density, gates, found.base)
    field, state, leapfrogs = warm_up(field, starting_points(found, superchains or chains), warmup, betas, progress)
    size = TRAJECTORY / leapfrogs
    if superchains:
        state = state.rows(copies(chains, superchains).to(client.device))
        for _ in progress("settling", settle):
            state, _, _ = step(field, state, jittered(size), leapfrogs)

    groups = shares(chains, processes if client.device.type == "cpu" else 1)

    def chain(k: int) -> Iterator[dict[str, Tensor]]:
        own = state.rows(groups[k])
        while True:
            own, info, walk = step(field, own, jittered(size), leapfrogs)
            yield {"z": field.laplace.decode(own.w), "lp": -own.energy, **info.stats, "kinks": walk.walls}

    draws_of_all = side_by_side(chain, len(groups), seed, client.device)
    with contextlib.closing(draws_of_all):
        stats, reasons = keep(draws_of_all, draws, progress)
    return collect(
        density,
        stats.pop("z"),
        mode=found.mode,
        kind="sampler",
        stats=stats,
        reasons=[*found.left.doubts, *reasons],
        attrs={
            "step_size": size,
            "leapfrog_steps": leapfrogs,
            "nats_left": found.left.number,
            "beta": field.gates.beta,
            **({"superchains": superchains} if superchains else {}),
        },
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
