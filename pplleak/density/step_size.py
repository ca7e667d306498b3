"""The step size ε of a sampler, by dual averaging of its acceptance (Hoffman & Gelman 2014, eq. 6), and how many steps
make a trajectory of fixed length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

TARGET = 0.8  # acceptance that dual averaging aims at
TRAJECTORY = 1.6  # length ε N, in posterior standard deviations: a quarter turn of a unit oscillator is 1.57
MAX_STEPS = 64


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


def jittered(size: float) -> float:
    """A step size within a fifth of this one, so that no trajectory closes upon itself."""
    return size * float(0.8 + 0.4 * torch.rand(()))
