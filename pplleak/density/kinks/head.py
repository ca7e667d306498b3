"""The layers behind the first wall in closed form: what a unit that switches changes there.

They are a perceptron whose input are the features a of the layers before. See `pplleak.density.kinks.perceptron`: with
a in the place of its image, the energy of their gradients is known from W a + b, G a + γ and ‖a‖², and ΔV of a switch
from these, without a pass through the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pplleak.channels import Gaussian
from pplleak.density import Density
from pplleak.density.kinks.gates import Gated
from pplleak.density.kinks.perceptron import NoStack, Perceptron, stack


@dataclass(frozen=True, eq=False)
class Head:
    """net: the layers from the one before the first wall on."""

    net: Perceptron

    def jump(self, features: Tensor, pattern: Tensor, unit: Tensor) -> Tensor:
        """ΔV (chains,), without the prior's and the other layers' share, where `unit` (chains,) switches; features
        (chains, fan_in), pattern (chains, units) bool."""
        first, a = self.net.layers[0], features.double()
        h = a @ first.weight.mT + first.bias
        return self.net.jump(h, first.pull(a), a.square().sum(1), pattern, unit)


def head(idle: Density, gates: Gated, z: Tensor) -> Head | None:
    """The tail of `gates` in closed form, or None where there is none: more than one example, unknown labels, other
    layers, another channel. Whether ΔV is that is for its caller to check.

    Args:
        idle: the model with a client that computes no gradient (`Field.idle`), whose channel is read at z (1, dim).
    """
    observed, client = idle.observed, idle.client
    if not gates.tail or observed.labels is None or observed.batch_size != 1 or client.local or idle.discrete:
        return None
    with torch.no_grad():
        channel = idle.trace(idle.constrain(z)[0], 1).nodes["g"]["fn"]
    if not isinstance(channel, Gaussian) or torch.as_tensor(channel.sigma).numel() != 1:
        return None
    chain = [(name, client.network.get_submodule(name)) for name in gates.tail]
    try:
        return Head(stack(chain, client.split(observed.g.double()), int(observed.labels[0]), float(channel.sigma)))
    except NoStack:
        return None
