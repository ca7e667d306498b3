"""Plain convolutional networks: the clients of the first attacks, and those of the paper."""

from __future__ import annotations

import torch
from torch import nn

from pplleak.client.networks.activations import ACTIVATIONS, Activation


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


def convbig(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    channels: tuple[int, int, int] = (32, 32, 64),
    width: int = 512,
    activation: Activation = "relu",
) -> nn.Module:
    """The ConvBig of Balunović et al. 2022: convolutions 3x3, 4x4 by stride 2 and 3x3, Dense512-Dense10.

    As in that paper's code, which leaves out the second strided convolution and one dense layer of the ConvBig that
    is known from certified training (Mirman et al. 2018).

    Args:
        channels: channels of the three convolutions; the second one halves the image.
        width: units of the dense layer.
        activation: the non-linearity; the paper's is relu, which makes the posterior discontinuous.
    """
    layers: list[nn.Module] = []
    fan_in = input_shape[0]
    for fan_out, kernel, stride in zip(channels, (3, 4, 3), (1, 2, 1), strict=True):
        layers += [nn.Conv2d(fan_in, fan_out, kernel, stride=stride, padding=1), ACTIVATIONS[activation]()]
        fan_in = fan_out
    features = nn.Sequential(*layers)
    flat = _flat_features(features, input_shape)
    return nn.Sequential(
        *features, nn.Flatten(), nn.Linear(flat, width), ACTIVATIONS[activation](), nn.Linear(width, num_classes)
    )
