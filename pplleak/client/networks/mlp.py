"""Fully connected layers. The default activation is smooth, so that HMC may sample the posterior."""

from __future__ import annotations

import itertools
import math

from torch import nn

from pplleak.client.networks._activations import Activation, activated


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
        layers += [nn.Linear(fan_in, fan_out), activated(activation)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))
