"""The CNN of Balunović et al. 2022: Conv32-Conv64-Dense100-Dense10, 3x3, average pooling by 2."""

from __future__ import annotations

from torch import nn

from pplleak.client.networks._activations import Activation, activated
from pplleak.client.networks._convolutional import flat_features


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
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), activated(activation), nn.AvgPool2d(2)]
        fan_in = fan_out
    features = nn.Sequential(*layers)
    flat = flat_features(features, input_shape)
    return nn.Sequential(
        *features, nn.Flatten(), nn.Linear(flat, width), activated(activation), nn.Linear(width, num_classes)
    )
