"""Does a microcanonical sampler (MAMS) draw faster than `hmc` from a smooth client's posterior?

    uv run benchmarks/microcanonical.py --data mnist --data-root DIR --sigma 0.03

One image, one observation, the whitened coordinates and the warmed-up chains of `hmc`, one recording of log p(w | g).
The samplers differ in how they move alone. With a velocity u, |u| = 1, in d dimensions (Robnik et al. 2022),

    kick:   u' = (u + e (sinh δ + (e·u)(cosh δ − 1))) / c,  e = −∇U/‖∇U‖,  δ = ε‖∇U‖/(d − 1), c = cosh δ + (e·u) sinh δ
    drift:  w' = w + ε u
    accept with probability min(1, exp(−W)),   W = U(w') − U(w) + (d − 1) Σ log c

(Robnik, Cohn-Gordon & Seljak 2025, arXiv 2503.01707.) u is drawn anew before every trajectory. A kick changes the
volume on the sphere by c^(1 − d), so that the test makes any palindrome of kicks and drifts exact. Two of them are
tried: leapfrog, and the three-stage splitting of Blanes, Casas & Sanz-Serna (2014) that `hmc` moves by. The number of
steps is uniform from 1 to 2L/ε, as in the paper; `jittered` takes L/ε steps and jitters ε instead, as `hmc` does. ε is
set by dual averaging to acceptance .9, as in the paper; `length` is L/√d, in posterior standard deviations.

Effective draws are those of a pixel's mean or of its variance, whichever are fewer: a trajectory of half a turn changes
the sign of all that lies in it, which makes means all but exact and leaves variances where they were. The log-density
counts as a pixel. Gradients and seconds are those of the sampling alone.

Writes benchmarks/results/microcanonical.csv, a row a sampler.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import torch
import tyro
from torch import Tensor

from pplleak import programs, runs
from pplleak.density import build, hamiltonian
from pplleak.density.hamiltonian import Info, Potential, State
from pplleak.density.step_size import DualAveraging, jittered, trajectory_steps
from pplleak.density.whitening import cheapest, locate, starting_points, whitened
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.inference import hmc
from pplleak.programs import MODEL
from pplleak.settings import Named
from pplleak.studies.attack import attack

COLUMNS = {
    "posterior": str, "sampler": str, "length": float, "device": str, "chains": int, "draws": int, "step_size": float,
    "acceptance": float, "gradients_per_draw": float, "ess_per_gradient_min": float, "ess_per_gradient_median": float,
    "ess_per_s_min": float, "ess_per_s_median": float, "rhat_max": float,
}  # fmt: skip
Splitting = tuple[tuple[float, ...], tuple[float, ...], float]  # drifts, the kicks that follow them, the first kick
LEAPFROG: Splitting = (1.0,), (1.0,), 0.5
BLANES: Splitting = hamiltonian.DRIFTS, hamiltonian.KICKS, hamiltonian.B
TARGET = 0.9  # acceptance


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    data_root: Path | None = None
    network: str = "mlp"
    widths: tuple[int, ...] = (256,)
    activation: str = "gelu"
    sigma: float = 0.03
    chains: int = 128
    draws: int = 100
    warmup: int = 100
    lengths: tuple[float, ...] = (1.6, 2.4)
    csv: Path = Path("benchmarks/results/microcanonical.csv")


def kick(u: Tensor, force: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """u (chains, d) after ∇U = `force` has turned it for the time `size`, and (d − 1) log c (chains,), in float64.

    Written with exp(−δ) alone, which does not overflow: c = exp(δ) (1 + e·u + (1 − e·u) exp(−2δ)) / 2.
    """
    norm = force.norm(dim=1, keepdim=True).clamp(min=torch.finfo(force.dtype).tiny)
    e = -force / norm
    along = (e * u).sum(1, keepdim=True).clamp(-1, 1)
    delta = size * norm / (u.shape[1] - 1)
    shrunk = torch.exp(-delta)
    turned = 2 * shrunk * u + e * (1 - shrunk) * (1 + shrunk + along * (1 - shrunk))
    scale = delta.double() + (1 + along.double() + (1 - along.double()) * shrunk.double().square()).log() - math.log(2)
    return turned / turned.norm(dim=1, keepdim=True), (u.shape[1] - 1) * scale[:, 0]


def step(
    potential: Potential, state: State, size: float, steps: int, splitting: Splitting = LEAPFROG, *, adjust: bool = True
) -> tuple[State, Info]:
    """One trajectory of `steps` steps for every chain, from a velocity that is drawn anew, and its Metropolis test;
    without it (`adjust`) the chains settle in another density."""
    drifts, kicks, first = splitting
    u = torch.randn_like(state.w)
    u = u / u.norm(dim=1, keepdim=True)
    w, energy, force = state.w, state.energy, state.force
    u, change = kick(u, force, size * first)
    for k in range(steps):
        for part, (drift, turn) in enumerate(zip(drifts, kicks, strict=True)):
            w = torch.add(w, u, alpha=size * drift)
            energy, force = potential(w)
            last = k == steps - 1 and part == len(drifts) - 1  # the kick that ends a step also begins the next
            u, more = kick(u, force, size * (first if last else turn))
            change = change + more
    change = torch.nan_to_num(energy.double() - state.energy.double() + change, nan=math.inf)
    acceptance = (-change).clamp(max=0).exp()
    accept = torch.rand_like(acceptance) < acceptance if adjust else torch.ones_like(acceptance, dtype=torch.bool)
    kept = State(
        torch.where(accept[:, None], w, state.w),
        torch.where(accept, energy, state.energy),
        torch.where(accept[:, None], force, state.force),
    )
    return kept, Info(acceptance, kept.energy, change > hamiltonian.DIVERGED)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A named way to move: `moved(potential, state, size, number)`, of `gradients` a step; `count(size)` steps."""

    name: str
    length: float
    gradients: int
    target: float
    moved: Callable[[Potential, State, float, int], tuple[State, Info]]
    count: Callable[[float], int]


def drawn(length: float, size: float) -> int:
    """A number of steps, uniform from 1 to twice what goes the length."""
    return int(torch.randint(1, max(1, round(2 * length / size)) + 1, ()))


def whole(length: float, size: float) -> int:
    return max(1, round(length / size))


def jolted(potential: Potential, state: State, size: float, steps: int) -> tuple[State, Info]:
    return step(potential, state, jittered(size), steps, BLANES)


def kernels(dim: int, lengths: tuple[float, ...]) -> list[Kernel]:
    found = [Kernel("hmc", 1.6, 3, 0.8, lambda p, s, e, n: hamiltonian.step(p, s, jittered(e), n), trajectory_steps)]
    for length in lengths:
        far = length * dim**0.5
        for name, splitting in (("leapfrog", LEAPFROG), ("three stages", BLANES)):
            moved = partial(step, splitting=splitting)
            found.append(Kernel(f"mams, {name}", length, len(splitting[0]), TARGET, moved, partial(drawn, far)))
        found.append(Kernel("mams, three stages, jittered", length, 3, TARGET, jolted, partial(whole, far)))
    return found


def sampled(kernel: Kernel, potential: Potential, state: State, args: Settings) -> tuple[list[State], dict[str, float]]:
    """Draws of every chain after ε was found, and what they cost."""
    tuner = DualAveraging.start((1.0 if kernel.name == "hmc" else state.w.shape[1] ** 0.5), kernel.target)
    longest = 1.6 if kernel.name == "hmc" else kernel.length * state.w.shape[1] ** 0.5
    for _ in range(args.warmup):
        size = min(longest, math.exp(tuner.log_step))
        state, info = kernel.moved(potential, state, size, kernel.count(size))
        tuner = tuner.update(float(info.acceptance.mean()))
    size = min(longest, math.exp(tuner.log_average))
    states, acceptance, steps, began = [], [], 0, time.perf_counter()
    for _ in range(args.draws):
        number = kernel.count(size)
        state, info = kernel.moved(potential, state, size, number)
        states.append(state)
        acceptance.append(float(info.acceptance.mean()))
        steps += number
    cost = {"seconds": time.perf_counter() - began, "gradients": kernel.gradients * steps / args.draws}
    return states, {"step_size": size, "acceptance": float(np.mean(acceptance)), **cost}


def effective(draws: np.ndarray) -> np.ndarray:
    """Of each quantity of (chain, draw, quantity), the effective draws of its mean or its variance, the fewer."""
    squares = (draws - draws.mean((0, 1))) ** 2
    return np.minimum(*(np.asarray(arviz.ess(v, method="mean")) for v in (draws, squares)))


def rows(args: Settings) -> Iterator[dict[str, Any]]:
    settings: dict[str, Any] = {"activation": args.activation}
    if args.network == "mlp":
        settings["widths"] = args.widths
    protection = Protection.parse(f"gaussian:sigma={args.sigma}")
    observed = observe(
        Scenario(args.data, args.data_root, network=Named(args.network, settings), protection=protection)
    )
    model = attack.believe(programs.load("models", MODEL), observed, {"prior": "gaussian"})
    title = f"{args.data} gaussian {args.network}{args.widths if args.network == 'mlp' else ''} {args.activation} sigma"
    pyro.set_rng_seed(0)
    density = build(model, observed.client, observed)
    found = locate(density, starts=8, steps=400)
    recorded, base = density.recorded(args.chains), cheapest(found.base)
    base, state, _ = hmc.warm_up(recorded, base, starting_points(dataclasses.replace(found, base=base), args.chains),
                                 args.warmup)  # fmt: skip
    potential = whitened(recorded, base)
    for kernel in kernels(density.dim, args.lengths):
        torch.manual_seed(0)
        states, cost = sampled(kernel, potential, state, args)
        z = torch.stack([base.decode(s.w) for s in states], 1)
        x = density.images(z.flatten(0, 1))[0].reshape(*z.shape[:2], -1)
        draws = np.concatenate([x.double().numpy(), torch.stack([-s.energy for s in states], 1)[..., None].numpy()], -1)
        ess = effective(draws)
        spent = cost["gradients"] * args.draws * args.chains
        yield {
            "posterior": f"{title} {args.sigma:g}", "sampler": kernel.name, "length": kernel.length,
            "device": f"cpu x{os.cpu_count()}", "chains": args.chains, "draws": args.draws,
            "step_size": round(cost["step_size"], 4), "acceptance": round(cost["acceptance"], 3),
            "gradients_per_draw": round(cost["gradients"], 2),
            "ess_per_gradient_min": round(float(ess.min()) / spent, 4),
            "ess_per_gradient_median": round(float(np.median(ess)) / spent, 4),
            "ess_per_s_min": round(float(ess.min()) / cost["seconds"], 1),
            "ess_per_s_median": round(float(np.median(ess)) / cost["seconds"], 1),
            "rhat_max": round(float(np.max(arviz.rhat(draws))), 4),
        }  # fmt: skip


def main(args: Settings) -> None:
    table = runs.Rows(args.csv, COLUMNS, ("posterior", "sampler", "length"))
    for row in rows(args):
        table.add([row])
        print({k: v for k, v in row.items() if k not in ("posterior", "device", "chains")}, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
