"""The ConvBig of Balunović et al. 2022: convolutions 3x3, 4x4 by stride 2 and 3x3, Dense512-Dense10."""

from __future__ import annotations

from torch import nn

from pplleak.client.networks._activations import Activation, activated
from pplleak.client.networks._convolutional import flat_features


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
        layers += [nn.Conv2d(fan_in, fan_out, kernel, stride=stride, padding=1), activated(activation)]
        fan_in = fan_out
    features = nn.Sequential(*layers)
    flat = flat_features(features, input_shape)
    return nn.Sequential(
        *features, nn.Flatten(), nn.Linear(flat, width), activated(activation), nn.Linear(width, num_classes)
    )
