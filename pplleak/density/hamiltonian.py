"""One trajectory of Hamiltonian Monte Carlo for all chains at once, with its Metropolis test.

    p ~ Normal(0, I);   steps of size ε on U(w);   accept with probability min(1, exp(U(w) + p²/2 − U(w') − p'²/2))

(Neal 2011, section 5.) A step is the three-stage splitting of Blanes, Casas & Sanz-Serna (2014): kicks b, ½ − b, ½ − b,
b with drifts a, 1 − 2a, a between them. It takes three gradients, and keeps the energy far better than three leapfrog
steps do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Potential = Callable[[Tensor], tuple[Tensor, Tensor]]  # w (chains, dim) -> U (chains,), ∇U (chains, dim)
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
