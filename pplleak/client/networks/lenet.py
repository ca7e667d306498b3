"""The LeNet of Deep Leakage from Gradients (Zhu et al. 2019): strided 5x5 convolutions, sigmoid."""

from __future__ import annotations

from torch import nn

from pplleak.client.networks._activations import Activation, activated
from pplleak.client.networks._convolutional import flat_features


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
        layers += [nn.Conv2d(fan_in, channels, 5, stride=stride, padding=2), activated(activation)]
        fan_in = channels
    features = nn.Sequential(*layers)
    network = nn.Sequential(*features, nn.Flatten(), nn.Linear(flat_features(features, input_shape), num_classes))
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return network
