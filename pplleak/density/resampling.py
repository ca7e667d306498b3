"""Particles on their way to the posterior: the next temperature, and drawn anew in proportion to their weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def next_temperature(
    log_weights: Callable[[float], Tensor], beta: float, keep: float, close: float = 1.001
) -> tuple[float, Tensor]:
    """The largest β' whose weights keep `keep` of the particles on the worst island (effective share), and log w.

    Args:
        log_weights: β' -> log w (islands, particles) of a step from beta to β'. close: a factor to which β' is found.
    """

    def kept(new: float) -> float:
        w = log_weights(new).softmax(1)
        return float((1 / w.square().sum(1) / w.shape[1]).min())

    if kept(1.0) >= keep:
        return 1.0, log_weights(1.0)
    low, high = beta, 1.0
    for _ in range(50):  # bisection; on a log scale while β is small
        middle = math.sqrt(low * high) if low > 0 else high / 10
        low, high = (middle, high) if kept(middle) >= keep else (low, middle)
        if low > 0 and high / low < close:
            break
    return low or high, log_weights(low or high)


def resample(log_weights: Tensor) -> Tensor:
    """Systematic resampling within each island: ancestors (islands, particles), in order (Douc & Cappé 2005)."""
    islands, particles = log_weights.shape
    cumulative = log_weights.softmax(1).cumsum(1)
    comb = (
        torch.arange(particles, device=cumulative.device) + torch.rand(islands, 1, device=cumulative.device)
    ) / particles
    return torch.searchsorted(cumulative, comb.to(cumulative.dtype)).clamp(max=particles - 1)
