"""The linear layer that a network ends in: its gradient names the labels, and some defences go before it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pplleak.client import Client
from pplleak.errors import BadInput

ELSE = "leave the labels unknown"


@dataclass(frozen=True, eq=False)
class LastLayer:
    """The linear layer that gives the logits, and the names of its parameters in `Client.layers`; "" for none."""

    module: nn.Linear
    weight: str
    bias: str


def last_layer(client: Client, otherwise: str = ELSE) -> LastLayer:
    """Find the linear layer whose outputs are the logits; raises BadInput, with what to do otherwise, without one."""
    names = {id(p): name for name, p in client.parameters.items()}
    for module in reversed([m for m in client.network.modules() if isinstance(m, nn.Linear)]):
        if module.out_features != client.num_classes or id(module.weight) not in names:
            continue
        x = torch.rand(2, *client.input_shape, generator=torch.Generator().manual_seed(0)).to(module.weight)
        a, logits = inputs(client, module, x)
        if a.dim() == 2 and torch.allclose(module(a), logits, rtol=1e-4, atol=1e-5):
            return LastLayer(module, names[id(module.weight)], names.get(id(module.bias), ""))
    if client.withheld:
        raise BadInput(
            f"the gradient of the network's last layer, which would tell the labels, was not shared: {otherwise}"
        )
    raise BadInput(f"the network does not end in a linear layer, whose gradient would tell the labels: {otherwise}")


@torch.no_grad()
def before_last(
    make: Callable[[nn.Module, str], nn.Module],
    base: nn.Module,
    input_shape: tuple[int, ...],
    num_classes: int,
    who: str,
) -> nn.Module:
    """A network with something put before its last linear layer.

    Args:
        make: a copy of the network, and its last linear layer's name -> the network changed. who: what is put there.

    Raises:
        BadInput: the network has no such layer, or it does not give the logits.
    """
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    if not linear or not linear[-1]:
        raise BadInput(f"{who} goes between features and the last fully connected layer, and the network has none")
    made = make(copy.deepcopy(base), linear[-1])
    logits = made(torch.zeros(1, *input_shape))
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        raise BadInput(f"{who} goes before the layer that gives the logits, and the network's last fully connected "
                       "layer is none")  # fmt: skip
    return made


@torch.no_grad()
def inputs(client: Client, module: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the layer sees of x (N, *input_shape), (N, features), and the logits (N, num_classes)."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    try:
        logits = client.network(x.to(module.weight))
    finally:
        handle.remove()
    return seen[-1] if seen else torch.zeros(0), logits
