"""The networks under attack, each a function (input_shape, num_classes, *, settings) -> nn.Module.

Widths and activations are settings: ``--network mlp --network.widths 256 128 --network.activation relu``.
Weights are drawn from torch's global generator with torch's own initialisation, where a network says nothing else;
`Client` seeds it. Trained weights are loaded over them by ``--checkpoint FILE.safetensors``.
A user's own network is the same kind of function in a file: ``--network my_net.py:build``.
"""

from pplleak.client.networks.activations import ACTIVATIONS, Activation
from pplleak.client.networks.convolutional import convbig, convnet, lenet
from pplleak.client.networks.dense import linear, mlp
from pplleak.client.networks.residual import resnet18, resnet20
from pplleak.client.networks.transformer import vit

__all__ = ["ACTIVATIONS", "Activation", "convbig", "convnet", "lenet", "linear", "mlp", "resnet18", "resnet20", "vit"]


def names():  # type: ignore
    from pplleak import programs

    return programs.network_names()


def load(name):  # type: ignore
    from pplleak import programs

    return programs.network(name)
