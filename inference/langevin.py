"""Langevin Monte Carlo for large images: one gradient a step, and no matrix anywhere (MALA exact, ULA approximate).

In coordinates with one width a latent, z = ẑ + s ∘ w, a step of size ε is

    w' ~ Normal(m(w), ε² I),   m(w) = w + ε²/2 ∇ log p(w | g)
    mala: accept with probability min(1, p(w') Normal(w; m(w'), ε² I) / p(w) Normal(w'; m(w), ε² I))
    ula:  always accept

(Roberts & Tweedie 1996.) With the test the posterior is exact in the limit. Without it the chains settle in another
density: a Gaussian of variance σ_i² in w comes out as σ_i² / (1 − ε²/4σ_i²); the result is labelled an approximation.

ε is set by dual averaging to acceptance .574, which is optimal as the dimension grows (Roberts & Rosenthal 1998); ULA
takes half of it, for a quarter of the error. s starts from the curvature at the MAP and is fitted again to the chains
half-way through warm-up. `hmc` whitens with the whole Hessian and mixes in fewer gradients, where dim² numbers and dim³
operations can be had.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pyro
import torch
from torch import Tensor

from pplleak.client import Client, distrust
from pplleak.density import Model, build
from pplleak.density.chains import keep
from pplleak.density.diagonal import Diagonal, locate, nearest
from pplleak.density.recording.tape import Recorded
from pplleak.density.step_size import DualAveraging
from pplleak.density.whitening import Located, starting_points
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent

LogDensity = Callable[[Tensor], tuple[Tensor, Tensor]]  # w (chains, dim) -> log p (chains,), its gradient (chains, dim)

TARGET = 0.574  # acceptance that dual averaging aims at


@dataclass(frozen=True, eq=False)
class State:
    """Where the chains are: w (chains, dim), log p(w | g) (chains,) and its gradient (chains, dim)."""

    w: Tensor
    lp: Tensor
    gradient: Tensor


def step(log_density: LogDensity, state: State, size: float, *, adjust: bool = True) -> tuple[State, Tensor]:
    """One step of every chain, with its Metropolis test if `adjust`; the new state and the acceptance (chains,)."""
    noise = torch.randn_like(state.w)
    w = state.w + 0.5 * size**2 * state.gradient + size * noise
    proposed = State(w, *log_density(w))
    back = (state.w - w - 0.5 * size**2 * proposed.gradient) / size
    log_ratio = proposed.lp - state.lp + 0.5 * (noise.double().square() - back.double().square()).sum(1)
    acceptance = torch.nan_to_num(log_ratio, nan=-math.inf).clamp(max=0).exp()
    if not adjust:
        return proposed, acceptance
    accept = torch.rand_like(acceptance) < acceptance
    kept = State(
        torch.where(accept[:, None], proposed.w, state.w),
        torch.where(accept, proposed.lp, state.lp),
        torch.where(accept[:, None], proposed.gradient, state.gradient),
    )
    return kept, acceptance


def warm_up(
    recorded: Recorded, found: Located[Diagonal], chains: int, iterations: int, progress: ProgressBar = silent
) -> tuple[Diagonal, State, float]:
    """MALA steps that find ε, and the widths that the chains see from a quarter to half of the way."""
    base, w = found.base, starting_points(found, chains)
    log_density = base.under(recorded)
    state = State(w, *log_density(w))
    tuner = DualAveraging.start(1.65 * w.shape[1] ** (-1 / 6), TARGET)
    seen: list[State] = []
    for t in progress("warm-up", iterations):
        state, acceptance = step(log_density, state, math.exp(tuner.log_step))
        tuner = tuner.update(float(acceptance.mean()))
        if iterations // 4 <= t < iterations // 2:
            seen.append(state)
        if t == iterations // 2 and len(seen) * chains > 100:
            scale = nearest(torch.cat([s.w for s in seen]), torch.cat([s.gradient for s in seen])).clamp(0.1, 10)
            seen, base = [], base.widened(scale)
            log_density = base.under(recorded)
            state = State(state.w / scale, state.lp, state.gradient * scale)
            tuner = DualAveraging.start(math.exp(tuner.log_average), TARGET)
    return base, state, math.exp(tuner.log_average)


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    kernel: Literal["mala", "ula"] = "mala",
    chains: int = 32,
    draws: int = 250,
    warmup: int = 500,
    thin: int = 8,
    starts: int = 4,
    steps: int = 400,
) -> Posterior:
    """Draws from p(x, y | g), or near it by ULA. Ctrl-C keeps what has been drawn.

    Args:
        kernel: mala, exact; or ula, without the Metropolis test: an approximation.
        chains: Markov chains, all advanced in one batch.
        draws: draws a chain that are kept, after warm-up.
        warmup: steps that tune the step size and the widths and are thrown away.
        thin: steps between two draws that are kept.
        starts: prior draws the search for the MAP starts from.
        steps: its Adam steps.
    """
    require_positive(chains=chains, draws=draws, warmup=warmup, thin=thin, starts=starts, steps=steps)
    pyro.set_rng_seed(seed)
    density = build(model, client, observed)
    reasons = list(distrust(client, "Langevin"))
    for reason in reasons:
        warnings.warn(reason, stacklevel=2)  # before the work, not only after it
    found = locate(density, starts=starts, steps=steps, progress=progress)
    recorded = density.recorded(chains)
    base, state, size = warm_up(recorded, found, chains, warmup, progress)
    exact = kernel == "mala"
    size = size if exact else size / 2
    log_density = base.under(recorded)

    def chain(state: State) -> Iterator[dict[str, Tensor]]:
        while True:
            accepted = []
            for _ in range(thin):
                state, acceptance = step(log_density, state, size, adjust=exact)
                accepted.append(acceptance)
            yield {"z": base.decode(state.w), "lp": state.lp, "acceptance_rate": torch.stack(accepted).mean(0)}

    stats, interrupted = keep(chain(state), draws, progress)
    return collect(
        density,
        stats.pop("z"),
        mode=found.mode,
        kind="sampler" if exact else "approximate sampler",
        approximation="" if exact else f"Langevin steps of size {size:.2g} without a Metropolis test",
        stats=stats,
        reasons=[*reasons, *found.left.doubts, *interrupted],
        attrs={"kernel": kernel, "step_size": size, "nats_left": found.left.number},
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
