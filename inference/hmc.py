"""Hamiltonian Monte Carlo: exact draws from the posterior of a smooth client, all chains in one batch.

In coordinates w whitened by the Laplace fit, z = ẑ + L w (Neal 2011, sections 4 and 5):

    p ~ Normal(0, I);   N steps of size ε on U(w) = −log p(z(w) | g);
    accept with probability min(1, exp(U(w) + p²/2 − U(w') − p'²/2))

A step is the three-stage splitting of Blanes, Casas & Sanz-Serna (2014), which on a posterior that whitening has made
nearly round keeps the energy so well that one step of three gradients goes a whole quarter turn; leapfrog needs six.
ε is set by dual averaging (Hoffman & Gelman 2014, eq. 6) and jittered from draw to draw; N is fixed once ε is known.
Chains start at overdispersed Laplace draws, around every mode that the search for the MAP found within reach.

A network with kinks (ReLU, max pooling) has a gradient, and so a posterior, that jumps: smooth steps cannot cross the
jumps, and the result says that it is not to be trusted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyro
import torch
from torch import Tensor

from pplleak.client import Client, distrust
from pplleak.density import Model, build
from pplleak.density.recording.tape import Recorded
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.inference.laplace import Laplace, Located, locate
from pplleak.posterior import Posterior, collect
from pplleak.posterior.information import bridge
from pplleak.progress import ProgressBar, keep, silent

Potential = Callable[[Tensor], tuple[Tensor, Tensor]]  # w (chains, dim) -> U (chains,), ∇U (chains, dim)

TARGET = 0.8  # acceptance that dual averaging aims at
TRAJECTORY = 1.6  # length ε N, in posterior standard deviations: a quarter turn of a unit oscillator is 1.57
MAX_STEPS = 64
B, A = 0.11888010966548, 0.29619504261126  # kicks b, ½ − b, ½ − b, b and drifts a, 1 − 2a, a between them
KICKS, DRIFTS = (0.5 - B, 0.5 - B, 2 * B), (A, 1 - 2 * A, A)  # the kick b that ends a step also begins the next
DIVERGED = 1000.0  # an energy error no step of a sane size makes


@dataclass(frozen=True, eq=False)
class State:
    """Where the chains are: w (chains, dim), U(w) (chains,) and ∇U(w) (chains, dim)."""

    w: Tensor
    energy: Tensor
    force: Tensor


@dataclass(frozen=True, eq=False)
class Info:
    """What one trajectory did, each (chains,): acceptance probability, total energy, divergence."""

    acceptance: Tensor
    energy: Tensor
    diverging: Tensor

    @property
    def stats(self) -> dict[str, Tensor]:
        """By the names that a Posterior knows them by."""
        return {"acceptance_rate": self.acceptance, "energy": self.energy, "diverging": self.diverging}


def init(potential: Potential, w: Tensor) -> State:
    return State(w, *potential(w))


def step(potential: Potential, state: State, step_size: float, steps: int) -> tuple[State, Info]:
    """One trajectory of `steps` splitting steps for every chain, and its Metropolis test."""
    p = torch.randn_like(state.w)
    start = state.energy + 0.5 * p.double().square().sum(1)
    w, energy, force = state.w, state.energy, state.force
    p = torch.add(p, force, alpha=-step_size * B)
    for _ in range(steps):
        for drift, kick in zip(DRIFTS, KICKS, strict=True):
            w = torch.add(w, p, alpha=step_size * drift)
            energy, force = potential(w)
            p = torch.add(p, force, alpha=-step_size * kick)
    p = torch.add(p, force, alpha=step_size * B)
    end = energy + 0.5 * p.double().square().sum(1)
    change = torch.nan_to_num(end - start, nan=math.inf)
    acceptance = (-change).clamp(max=0).exp()
    accept = torch.rand_like(acceptance) < acceptance
    kept = State(
        torch.where(accept[:, None], w, state.w),
        torch.where(accept, energy, state.energy),
        torch.where(accept[:, None], force, state.force),
    )
    return kept, Info(acceptance, torch.where(accept, end, start), change > DIVERGED)


@dataclass(frozen=True)
class DualAveraging:
    """ε by Nesterov's dual averaging: log ε_{t+1} = μ − √t/γ · 1/(t + t₀) Σ (target − acceptance_t)."""

    mu: float
    log_step: float
    target: float = TARGET
    log_average: float = 0.0
    error: float = 0.0
    count: int = 0

    @staticmethod
    def start(step_size: float, target: float = TARGET) -> DualAveraging:
        return DualAveraging(math.log(10 * step_size), math.log(step_size), target)

    def update(self, acceptance: float, gamma: float = 0.05, t0: float = 10, kappa: float = 0.75) -> DualAveraging:
        t = self.count + 1
        error = (1 - 1 / (t + t0)) * self.error + (self.target - acceptance) / (t + t0)
        log_step = self.mu - math.sqrt(t) / gamma * error
        weight = t**-kappa
        average = weight * log_step + (1 - weight) * self.log_average
        return replace(self, log_step=log_step, log_average=average, error=error, count=t)


def trajectory_steps(step_size: float) -> int:
    return max(1, min(MAX_STEPS, round(TRAJECTORY / step_size)))


def whitened(log_density: Recorded, laplace: Laplace) -> Potential:
    """U(w) = −log p(ẑ + L w | g) and its gradient, for `density.recorded` or another log-density and its gradient."""
    inner = log_density.under(laplace.mode, laplace.factor)

    def potential(w: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = inner(w)
        return -value, -gradient

    return potential


def cheapest(laplace: Laplace, spread: float = 5.0) -> Laplace:
    """The diagonal metric diag(H)^−½ where it is about as good as the dense one, else the fit itself.

    In its coordinates the curvature then has eigenvalues within a factor of `spread`, and the step size, which the
    largest decides, costs little. A diagonal metric leaves products that are sparse in z sparse
    (`pplleak.density.recording.tape`).
    """
    inverse = torch.linalg.inv(laplace.factor.double())
    precision = inverse.mT @ inverse
    sd = precision.diagonal().rsqrt()
    curvature = torch.linalg.eigvalsh(sd[:, None] * precision * sd)
    if bool(curvature[-1] > spread * curvature[0]):
        return laplace
    return replace(laplace, factor=sd.diag().to(laplace.factor.dtype), log_det=float(sd.log().sum()))


def starting_points(found: Located, chains: int, inflate: float = 1.2) -> Tensor:
    """w (chains, dim): inflated Laplace draws, dealt out to all ends of the search within reach of the best.

    A second mode that holds mass is entered this way, and R-hat sees it; a local optimum far below is not.
    """
    laplace = found.laplace
    near = torch.cat([laplace.mode[None], found.starts[1:]])
    offsets = torch.linalg.solve(laplace.factor.double(), (near - laplace.mode).double().mT).mT.to(near.dtype)
    picks = torch.arange(chains, device=near.device) % len(near)
    return offsets[picks] + inflate * torch.randn(chains, near.shape[1], dtype=near.dtype, device=near.device)


def warm_up(
    log_density: Recorded, laplace: Laplace, w: Tensor, iterations: int, progress: ProgressBar = silent
) -> tuple[Laplace, State, float]:
    """Find ε, and correct the widths of the Laplace fit by those that the chains see half-way."""
    potential = whitened(log_density, laplace)
    state, tuner = init(potential, w), DualAveraging.start(min(TRAJECTORY, 3 / w.shape[1] ** 0.25))
    seen: list[Tensor] = []
    for t in progress("warm-up", iterations):
        size = min(TRAJECTORY, math.exp(tuner.log_step))
        state, info = step(potential, state, size * float(0.8 + 0.4 * torch.rand(())), trajectory_steps(size))
        tuner = tuner.update(float(info.acceptance.mean()))
        if iterations // 4 <= t < iterations // 2:
            seen.append(state.w)
        if t == iterations // 2 and len(seen) * len(w) > 100:
            sd = torch.cat(seen).std(0).clamp(0.1, 10)
            laplace = replace(laplace, factor=laplace.factor * sd, log_det=laplace.log_det + float(sd.log().sum()))
            potential = whitened(log_density, laplace)
            state, tuner = init(potential, state.w / sd), DualAveraging.start(size)
    return laplace, state, min(TRAJECTORY, math.exp(tuner.log_average))


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
) -> Posterior:
    """Draws from p(x, y | g). Ctrl-C keeps what has been drawn.

    Args:
        chains: Markov chains, all advanced in one batch.
        draws: draws a chain, after warm-up.
        warmup: trajectories that tune the step size and are thrown away.
        starts: prior draws the search for the MAP starts from.
        steps: its Adam steps.
    """
    require_positive(chains=chains, draws=draws, warmup=warmup, starts=starts, steps=steps)
    pyro.set_rng_seed(seed)
    density = build(model, client, observed)
    reasons = list(distrust(client, "HMC"))
    for reason in reasons:
        warnings.warn(reason, stacklevel=2)  # before the work, not only after it
    found = locate(density, starts=starts, steps=steps, progress=progress)
    fitted, found = found.laplace, replace(found, laplace=cheapest(found.laplace))
    recorded = density.recorded(chains)
    laplace, state, size = warm_up(recorded, found.laplace, starting_points(found, chains), warmup, progress)
    potential, number = whitened(recorded, laplace), trajectory_steps(size)

    def chain(state: State) -> Iterator[dict[str, Tensor]]:
        while True:
            state, info = step(potential, state, size * float(0.8 + 0.4 * torch.rand(())), number)
            yield {"z": laplace.decode(state.w), "lp": -state.energy, **info.stats}

    stats, interrupted = keep(chain(state), draws, progress)
    z = stats.pop("z")
    evidence = bridge(density, z, stats["lp"], fitted.mode, fitted.factor)
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
            "log_evidence": evidence and evidence.value,
            "log_evidence_se": evidence and evidence.se,
        },
    )


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
