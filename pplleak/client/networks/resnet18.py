"""ResNet-18 of torchvision with the stem for small images: a 3x3 convolution of stride 1, no max pooling."""

from __future__ import annotations

import torchvision
from torch import nn

from pplleak.client.networks._activations import Activation, swap
from pplleak.client.networks._mode import Mode


def resnet18(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    batch_norm: Mode = "eval",
    activation: Activation = "relu",
) -> nn.Module:
    """ResNet-18 of torchvision with the stem for small images: a 3x3 convolution of stride 1, no max pooling.

    Args:
        batch_norm: eval normalises by running statistics, which are 0 and 1 before any training; train by those of
            the client's own batch, which ties its examples to each other.
        activation: the non-linearity; relu makes the posterior discontinuous.
    """
    network = torchvision.models.resnet18(num_classes=num_classes)
    network.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return swap(network, nn.ReLU, activation).train(batch_norm == "train")
