"""A smooth network in place of a client's ReLU one, for samplers that need slopes (an approximation, and labelled so).

    relu(x)          →  softplus_β(x) = log(1 + exp(β x)) / β           (PyTorch's nn.Softplus)
    leaky_relu_a(x)  →  a x + (1 − a) softplus_β(x)

The observation still comes from the client; only the adversary's model holds the surrogate. softplus_β lies at most
log 2 / β above relu, but what is shared is a *gradient*, whose steps become ramps 1/β wide: away from the kinks log p
is that of the client as β → ∞, at the kinks never. `pplleak.posterior.collect` weighs the draws by the client's own
density, and the k-hat of these weights says how far the surrogate's posterior is from the client's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplleak.client import Client, extended
from pplleak.density import Density, build
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation


@dataclass(frozen=True, eq=False, kw_only=True)
class Surrogate(Client):
    """A smooth client; `exact` is the one it stands for, `beta` the sharpness of its softplus."""

    exact: Client
    beta: float

    @property
    def approximation(self) -> str:
        """What is approximate about it, in plain words."""
        return f"a softplus (β = {self.beta:g}) in place of the network's {' and '.join(self.exact.kinks)}"


class LeakySoftplus(nn.Module):
    """a x + (1 − a) softplus_β(x): leaky ReLU's smooth form."""

    def __init__(self, slope: float, beta: float) -> None:
        super().__init__()
        self.slope, self.beta = slope, beta

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + (1 - self.slope) * F.softplus(x, self.beta)


def smoothed(client: Client, beta: float) -> Surrogate:
    """The client with a softplus of sharpness `beta` for every nn.ReLU and nn.LeakyReLU.

    Raises:
        BadInput: the network has no kinks, or others than these (max pooling, functional calls, …).
    """
    require_positive(surrogate=beta)
    if not client.kinks:
        raise BadInput("the network is smooth: there is nothing that a surrogate could replace")
    network = _replaced(copy.deepcopy(client.network), beta)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in client.layers)  # `build` reads off this what is shared
    smooth = Client(network, client.input_shape, client.num_classes, client.local, client.loss, client.withheld,
                    client.targets)  # fmt: skip
    if smooth.kinks:
        raise BadInput(
            f"a surrogate replaces nn.ReLU and nn.LeakyReLU modules only, and the network also has kinks of another "
            f"kind ({', '.join(smooth.kinks)}): use average pooling and smooth activations there"
        )
    return extended(Surrogate, smooth, exact=client, beta=beta)


def believed(observed: Observation, beta: float) -> Observation:
    """The same observation, to an adversary who believes in a softplus network."""
    provenance = {**observed.provenance, "surrogate": beta}
    return replace(observed, client=smoothed(observed.client, beta), provenance=provenance)


def _replaced(module: nn.Module, beta: float) -> nn.Module:
    if isinstance(module, nn.ReLU):
        return nn.Softplus(beta)
    if isinstance(module, nn.LeakyReLU):
        return LeakySoftplus(module.negative_slope, beta)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, beta))
    return module


@torch.no_grad()
def log_ratio(density: Density, surrogate: Surrogate, z: Tensor) -> Tensor:
    """log p(z | g) of the client that a surrogate stands for, less the surrogate's own; z (draws, dim) -> (draws,)."""
    exact = build(density.model, surrogate.exact, density.observed)
    return torch.cat([exact(part) - density(part) for part in z.split(32)])  # more take no less time each
