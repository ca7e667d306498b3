"""Particles drawn anew in proportion to their weights."""

from __future__ import annotations

import torch
from torch import Tensor


def resample(log_weights: Tensor) -> Tensor:
    """Systematic resampling within each island: ancestors (islands, particles), in order (Douc & Cappé 2005)."""
    islands, particles = log_weights.shape
    cumulative = log_weights.softmax(1).cumsum(1)
    comb = (
        torch.arange(particles, device=cumulative.device) + torch.rand(islands, 1, device=cumulative.device)
    ) / particles
    return torch.searchsorted(cumulative, comb.to(cumulative.dtype)).clamp(max=particles - 1)
