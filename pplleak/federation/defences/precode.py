"""PRECODE (Scheliga et al. 2022): a variational bottleneck, whose noise goes into every layer's gradient.

    [μ, s] = W_E h + b_E,   σ = log(1 + exp s),   b = μ + σ ⊙ ε,  ε ~ Normal(0, I),   ĥ = W_D b + b_D
    ℓ = cross entropy + beta · KL(Normal(μ, σ²) ‖ Normal(0, I)) / log 2

between the features h of the network and its last linear layer, which takes ĥ. Size, beta, softplus and the KL in bits
are those of the authors' code. Every example draws its own ε, in training as in use. The network takes ε as an input
(`Client.update(x, y, noise)`), so that one who knows the defence can have it as a latent variable; without it, ε = 0.

Source: Scheliga, Mäder and Seeland, PRECODE - A Generic Model Extension to Prevent Deep Gradient Leakage, WACV 2022.
"""

from __future__ import annotations

from torch import nn

from pplleak.client.last_layer import before_last
from pplleak.errors import require_positive
from pplleak.federation.defences import Attacks
from pplleak.federation.defences._bottleneck import Bottleneck

ATTACKS = Attacks("inverting_gradients", "Scheliga et al. 2022", "precode")


class Precode(Bottleneck):
    """The bottleneck before a network's last linear layer; ε (size,) for one example."""

    def __init__(self, base: nn.Module, last: str, size: int, beta: float) -> None:
        features = base.get_submodule(last)
        assert isinstance(features, nn.Linear)
        encoder, decoder = nn.Linear(features.in_features, 2 * size), nn.Linear(size, features.in_features)
        super().__init__(base, last, encoder, decoder, noise_shape=(size,), beta=beta, behind=False)


def network(
    base: nn.Module, input_shape: tuple[int, ...], num_classes: int, *, size: int = 256, beta: float = 1e-3
) -> nn.Module:
    """The network with PRECODE's bottleneck before its last linear layer.

    Args:
        size: dimensions of the bottleneck, K.
        beta: weight of the KL divergence in the loss, in bits.
    """
    require_positive(**{"precode's size": size, "precode's beta": beta})
    return before_last(lambda copy, last: Precode(copy, last, size, beta), base, input_shape, num_classes, "precode")
