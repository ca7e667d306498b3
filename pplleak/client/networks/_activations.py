"""The non-linearities that a network can be set to, by the name that torch's functional interface gives them."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from pplleak.errors import unknown

Activation = Literal["gelu", "softplus", "sigmoid", "tanh", "silu", "relu", "leaky_relu"]


def activated(activation: Activation) -> nn.Module:
    """The module of an activation: torch's of the same letters, `nn.LeakyReLU` for ``leaky_relu``."""
    if activation not in get_args(Activation):
        raise unknown("activation", activation, get_args(Activation))
    letters = activation.replace("_", "")
    made: nn.Module = next(m for n, m in vars(nn).items() if n.lower() == letters)()
    return made


def swap(network: nn.Module, old: type[nn.Module], activation: Activation) -> nn.Module:
    """Put another activation in the place of every module of the class `old`."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, old):
                setattr(parent, name, activated(activation))
    return network
