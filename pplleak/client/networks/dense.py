"""Networks of fully connected layers."""

from __future__ import annotations

import itertools
import math

from torch import nn

from pplleak.client.networks.activations import ACTIVATIONS, Activation


def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    widths: tuple[int, ...] = (64,),
    activation: Activation = "gelu",
) -> nn.Module:
    """Fully connected layers. The default activation is smooth, so that HMC may sample the posterior.

    Args:
        widths: units of each hidden layer.
        activation: the non-linearity; relu and leaky_relu make the posterior discontinuous.
    """
    sizes = [math.prod(input_shape), *widths]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


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
