"""Softmax regression: one linear layer, at its usual all-zero start."""

from __future__ import annotations

import math

from torch import nn


def linear(input_shape: tuple[int, ...], num_classes: int, *, zero: bool = True) -> nn.Module:
    """Softmax regression: one linear layer, at its usual all-zero start.

    Args:
        zero: start from zero weights, where the posterior under a Gaussian prior is exactly Gaussian.
    """
    layer = nn.Linear(math.prod(input_shape), num_classes)
    if zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)
