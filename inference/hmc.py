"""Hamiltonian Monte Carlo: exact draws from the posterior of a smooth client, all chains in one batch.

In coordinates w whitened by the Laplace fit, z = ẑ + L w (Neal 2011, sections 4 and 5):

    p ~ Normal(0, I);   N steps of size ε on U(w) = −log p(z(w) | g);
    accept with probability min(1, exp(U(w) + p²/2 − U(w') − p'²/2))

A step is the three-stage splitting of Blanes, Casas & Sanz-Serna (2014), which on a posterior that whitening has made
nearly round keeps the energy so well that one step of three gradients goes a whole quarter turn; leapfrog needs six.
ε is set by dual averaging (Hoffman & Gelman 2014, eq. 6) and jittered from draw to draw; N is fixed once ε is known.
Chains start at overdispersed Laplace draws, around every mode that the search for the MAP found within reach. With more
than 4096 latents, whose Hessian is too dear, L is of low rank plus a multiple of the identity: the draws are as exact,
more of them are needed, and log p(g) is not computed.

A network with kinks (ReLU, max pooling) has a gradient, and so a posterior, that jumps: smooth steps cannot cross the
jumps, and the result says that it is not to be trusted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pplleak.client import Client, distrust
from pplleak.density import Model, build, low_rank
from pplleak.density.chains import keep
from pplleak.density.hamiltonian import State, init, step
from pplleak.density.recording.tape import Recorded
from pplleak.density.starts import read_off
from pplleak.density.step_size import TRAJECTORY, DualAveraging, jittered, trajectory_steps
from pplleak.density.whitening import WIDEST, Coordinates, Laplace, Located, cheapest, locate, starting_points, whitened
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.posterior.information import bridge
from pplleak.progress import ProgressBar, silent


def warm_up[Base: Coordinates](
    log_density: Recorded, base: Base, w: Tensor, iterations: int, progress: ProgressBar = silent
) -> tuple[Base, State, float]:
    """Find ε, and correct the widths of the fit by those that the chains see half-way."""
    potential = whitened(log_density, base)
    state, tuner = init(potential, w), DualAveraging.start(min(TRAJECTORY, 3 / w.shape[1] ** 0.25))
    seen: list[Tensor] = []
    for t in progress("warm-up", iterations):
        size = min(TRAJECTORY, math.exp(tuner.log_step))
        state, info = step(potential, state, jittered(size), trajectory_steps(size))
        tuner = tuner.update(float(info.acceptance.mean()))
        if iterations // 4 <= t < iterations // 2:
            seen.append(state.w)
        if t == iterations // 2 and len(seen) * len(w) > 100:
            sd = torch.cat(seen).std(0).clamp(0.1, 10)
            base = base.widened(sd)
            potential = whitened(log_density, base)
            state, tuner = init(potential, state.w / sd), DualAveraging.start(size)
    return base, state, min(TRAJECTORY, math.exp(tuner.log_average))


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    chains: int = 64,
    draws: int = 250,
    warmup: int = 100,
    starts: int = 8,
    steps: int = 400,
    begin: str = "",
) -> Posterior:
    """Draws from p(x, y | g). Ctrl-C keeps what has been drawn.

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
    density = build(model, client, observed)
    reasons = list(distrust(client, "HMC"))
    for reason in reasons:
        warnings.warn(reason, stacklevel=2)  # before the work, not only after it
    near = read_off(density, begin, seed, progress) if begin else None
    found: Located[Any]
    fitted: Laplace | None = None
    if density.dim > WIDEST:
        found = low_rank.locate(density, starts=starts, steps=steps, begin=near, progress=progress)
    else:
        found = locate(density, starts=starts, steps=steps, begin=near, progress=progress)
        fitted, found = found.base, replace(found, base=cheapest(found.base))
    reasons += found.left.doubts
    recorded = density.recorded(chains)
    base, state, size = warm_up(recorded, found.base, starting_points(found, chains), warmup, progress)
    potential, number = whitened(recorded, base), trajectory_steps(size)

    def chain(state: State) -> Iterator[dict[str, Tensor]]:
        while True:
            state, info = step(potential, state, jittered(size), number)
            yield {"z": base.decode(state.w), "lp": -state.energy, **info.stats}

    stats, interrupted = keep(chain(state), draws, progress)
    z = stats.pop("z")
    evidence = bridge(density, z, stats["lp"], fitted.mode, fitted.factor) if fitted else None
    return collect(
        density,
        z,
        mode=found.mode,
        kind="sampler",
        stats=stats,
        reasons=reasons + interrupted,
        attrs={
            "step_size": size,
            "steps": number,
            "nats_left": found.left.number,
            "log_evidence": evidence and evidence.value,
            "log_evidence_se": evidence and evidence.se,
        },
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
