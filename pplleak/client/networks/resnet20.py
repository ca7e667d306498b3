"""ResNet-20, the CIFAR-10 network of He et al. 2016: three stages of three blocks, shortcuts without parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from pplleak.client.networks._activations import Activation, swap
from pplleak.client.networks._mode import Mode


def resnet20(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int = 16,
    batch_norm: Mode = "eval",
    activation: Activation = "relu",
) -> nn.Module:
    """ResNet-20, the CIFAR-10 network of He et al. 2016: three stages of three blocks, shortcuts without parameters.

    Args:
        width: channels of the first stage; each further stage doubles them and halves the image.
        batch_norm: eval normalises by running statistics, which are 0 and 1 before any training; train by those of
            the client's own batch, which ties its examples to each other.
        activation: the non-linearity; relu makes the posterior discontinuous.
    """
    layers = [nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    fan_in = width
    for stage in range(3):
        for block in range(3):
            fan_out, stride = width * 2**stage, 2 if stage and not block else 1
            layers.append(BasicBlock(fan_in, fan_out, stride, _Shortcut(fan_out - fan_in) if stride == 2 else None))
            fan_in = fan_out
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return swap(network, nn.ReLU, activation).train(batch_norm == "train")


class _Shortcut(nn.Module):
    """Every second pixel, and zeros in the channels that are new (option A of He et al.)."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))
