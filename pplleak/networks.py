"""The networks under attack, each a function (input_shape, num_classes, *, settings) -> nn.Module.

Widths and activations are settings: ``--network mlp --network.widths 256 128 --network.activation relu``.
Weights are drawn from torch's global generator with torch's own initialisation; `pplleak.clients.build` seeds it.
A user's own network is the same kind of function in a file: ``--network my_net.py:build``.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import nn

Activation = Literal["gelu", "softplus", "sigmoid", "tanh", "silu", "relu", "leaky_relu"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
}


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


def _flat_features(features: nn.Sequential, input_shape: tuple[int, ...]) -> int:
    """The number of features that come out of a convolutional stack, found by one dry run."""
    with torch.no_grad():
        return features(torch.zeros(1, *input_shape)).flatten(1).shape[1]


def lenet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    channels: int = 12,
    activation: Activation = "sigmoid",
) -> nn.Module:
    """The LeNet of Deep Leakage from Gradients (Zhu et al. 2019): strided 5x5 convolutions, sigmoid.

    Weights start uniform in [-0.5, 0.5], as in that paper's code: torch's default start leaks far less.

    Args:
        channels: channels of each of the three convolutions.
        activation: the non-linearity.
    """
    layers: list[nn.Module] = []
    fan_in = input_shape[0]
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(fan_in, channels, 5, stride=stride, padding=2), ACTIVATIONS[activation]()]
        fan_in = channels
    features = nn.Sequential(*layers)
    network = nn.Sequential(*features, nn.Flatten(), nn.Linear(_flat_features(features, input_shape), num_classes))
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return network


def convnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    channels: tuple[int, ...] = (32, 64),
    width: int = 100,
    activation: Activation = "relu",
) -> nn.Module:
    """The CNN of Balunović et al. 2022: Conv32-Conv64-Dense100-Dense10, 3x3, average pooling by 2.

    Args:
        channels: channels of each convolution; average pooling halves the image after each one.
        width: units of the dense layer.
        activation: the non-linearity; the paper's is relu, which makes the posterior discontinuous.
    """
    layers: list[nn.Module] = []
    fan_in = input_shape[0]
    for fan_out in channels:
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), ACTIVATIONS[activation](), nn.AvgPool2d(2)]
        fan_in = fan_out
    features = nn.Sequential(*layers)
    flat = _flat_features(features, input_shape)
    return nn.Sequential(
        *features, nn.Flatten(), nn.Linear(flat, width), ACTIVATIONS[activation](), nn.Linear(width, num_classes)
    )
