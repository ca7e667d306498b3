"""Sequential Monte Carlo from prior to posterior: draws and evidence, also where there are several modes.

Particles start at the prior and follow p_β(z) ∝ p(z) p(g | z)^β from β = 0 to 1 (Del Moral et al. 2006, section 3):

    β' such that ESS(w) = ½ N,   w = p_β'(z) / p_β(z);   resample;   move by HMC that leaves p_β' invariant
    log p(g) ≈ Σ over temperatures of log (1/N) Σ_i w_i                                            (their eq. 14)

Islands, resampled each within itself, are independent runs in one batch: they are the result's chains, so R-hat
compares them, and their spread is the error of the evidence. Draws descend from common ancestors where they stand
next to each other, so the effective sample size sees that too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build, marginal
from pplleak.density.decrement import settled
from pplleak.density.hamiltonian import init, step
from pplleak.density.recording.tape import Plain
from pplleak.density.refusals import require_possible
from pplleak.density.resampling import next_temperature, resample
from pplleak.density.search import maximise
from pplleak.density.step_size import jittered, trajectory_steps
from pplleak.density.whitening import Laplace, whitened
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent

GRID = 1000  # the progress bar counts thousandths of the way in log β, from FIRST
FIRST = 1e-6


def log_weights(prior: Tensor, likelihood: Tensor, beta: float, islands: int) -> Callable[[float], Tensor]:
    """β' -> log w (islands, particles) of a step from beta to β'.

    Args:
        prior, likelihood: as `Density.terms` gives them, (…, islands · particles).
    """
    now = marginal(prior, likelihood, beta)
    return lambda new: (marginal(prior, likelihood, new) - now).unflatten(0, (islands, -1))


def metric(z: Tensor) -> Laplace:
    """Coordinates in which the cloud z (particles, dim) is round: its mean, and the Cholesky factor of its covariance,
    shrunk to the diagonal as far as there are too few particles to know it."""
    centre = z.double().mean(0)
    covariance = (z.double() - centre).mT @ (z.double() - centre) / len(z)
    trust = len(z) / (len(z) + 2 * z.shape[1])
    shrunk = trust * covariance + (1 - trust) * covariance.diagonal().diag()
    shrunk = shrunk + 1e-10 * shrunk.diagonal().mean() * torch.eye(len(centre), dtype=torch.float64, device=z.device)
    factor = torch.linalg.cholesky(shrunk).to(z.dtype)
    return Laplace(centre.to(z.dtype), factor, float(factor.diagonal().log().sum()), 0)


def move(density: Density, z: Tensor, beta: float, moves: int, size: float) -> tuple[Tensor, Tensor, float]:
    """`moves` HMC trajectories at temperature β; returns z, its energy, and ε adapted towards acceptance 0.8."""
    base = metric(z)
    potential = whitened(Plain(functools.partial(density, temperature=beta)), base)
    w = torch.linalg.solve_triangular(base.factor.double(), (z - base.mode).double().mT, upper=False).mT.to(z.dtype)
    state = init(potential, w)
    for _ in range(moves):
        state, info = step(potential, state, jittered(size), trajectory_steps(size))
        size = min(1.5, size * math.exp(float(info.acceptance.mean()) - 0.8))
    return base.decode(state.w), state.energy, size


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    islands: int = 4,
    particles: int = 256,
    moves: int = 2,
    keep: float = 0.5,
    refresh: int = 10,
    steps: int = 200,
) -> Posterior:
    """One draw a particle, islands as chains, and log p(g) in the attributes.

    Args:
        islands: independent populations, run in one batch.
        particles: draws of each.
        moves: HMC trajectories at each temperature.
        keep: effective fraction of the particles that a step in temperature may leave.
        refresh: further trajectories at the end, where the posterior is reached.
        steps: Adam steps from the best particles to the MAP.
    """
    require_positive(islands=islands, particles=particles, moves=moves, refresh=refresh, steps=steps, keep=keep)
    if keep >= 1:
        raise BadInput(f"keep must lie below 1, not {keep}: it is the fraction of particles a step may leave effective")
    pyro.set_rng_seed(seed)
    density = build(model, client, observed)
    z = density.sample_prior(islands * particles)
    beta, size, temperatures = 0.0, 0.3, [0.0]
    log_evidence = torch.zeros(islands, dtype=torch.float64, device=z.device)
    ticks = _Ticks(progress("SMC", GRID + refresh))
    while beta < 1:
        with torch.no_grad():
            terms = [density.terms(part) for part in z.split(512)]
        prior, likelihood = (torch.cat([t[k] for t in terms], -1) for k in (0, 1))
        require_possible(prior + likelihood)
        beta, log_w = next_temperature(log_weights(prior, likelihood, beta, islands), beta, keep)
        log_evidence += log_w.logsumexp(1) - math.log(particles)
        ancestors = resample(log_w) + particles * torch.arange(islands, device=z.device)[:, None]
        z, energy, size = move(density, z[ancestors.flatten()], beta, moves, size)
        temperatures.append(beta)
        ticks.to(int(GRID * (1 - math.log(max(beta, FIRST)) / math.log(FIRST))))
    for k in range(refresh):
        z, energy, size = move(density, z, 1.0, 1, size)
        ticks.to(GRID + k + 1)
    best = maximise(density, begin=z[energy.argsort()[:8]], steps=steps, lr=0.02, progress=progress)
    mode, left = settled(functools.partial(density, jacobian=False), best.z[0])
    reasons = [*left.doubts]
    if client.kinks:
        reasons.append(
            f"the network has kinks ({', '.join(client.kinks)}): HMC moves do not cross its posterior's jumps"
        )
    total = float(log_evidence.logsumexp(0) - math.log(islands))
    spread = float(log_evidence.std()) / math.sqrt(islands) if islands > 1 else None
    return collect(
        density,
        z.unflatten(0, (islands, particles)),
        mode=mode,
        kind="sampler",
        stats={"lp": -energy.unflatten(0, (islands, particles))},
        curves={"temperature": torch.tensor(temperatures)},
        reasons=reasons,
        attrs={
            "log_evidence": total,
            "log_evidence_se": spread,
            "temperatures": len(temperatures),
            "nats_left": left.number,
        },
    )


class _Ticks:
    """A progress bar that is told where it stands: the number of temperatures is not known beforehand."""

    def __init__(self, steps: Iterator[int]) -> None:
        self.steps, self.done = steps, -1

    def to(self, tick: int) -> None:
        while self.done < tick:
            self.done = next(self.steps, tick)


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
