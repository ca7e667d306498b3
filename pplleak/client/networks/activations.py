"""The non-linearities that a network can be set to, by the name that torch's functional interface gives them."""

from __future__ import annotations

from typing import Literal

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


def swap(network: nn.Module, old: type[nn.Module], activation: Activation) -> nn.Module:
    """Put another activation in the place of every module of the class `old`."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, old):
                setattr(parent, name, ACTIVATIONS[activation]())
    return network
