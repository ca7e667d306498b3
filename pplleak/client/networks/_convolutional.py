"""What convolutional networks share."""

from __future__ import annotations

import torch
from torch import nn


def flat_features(features: nn.Sequential, input_shape: tuple[int, ...]) -> int:
    """The number of features that come out of a convolutional stack, found by one dry run."""
    with torch.no_grad():
        return features(torch.zeros(1, *input_shape)).flatten(1).shape[1]
