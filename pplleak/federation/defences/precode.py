"""PRECODE (Scheliga et al. 2022): a variational bottleneck, whose noise goes into every layer's gradient.

    [μ, s] = W_E h + b_E,   σ = log(1 + exp s),   b = μ + σ ⊙ ε,  ε ~ Normal(0, I),   ĥ = W_D b + b_D
    ℓ = cross entropy + beta · KL(Normal(μ, σ²) ‖ Normal(0, I)) / log 2

between the features h of the network and its last linear layer, which takes ĥ. Size, beta, softplus and the KL in bits
are those of the authors' code. Every example draws its own ε, in training as in use. The network takes ε as an input
(`Client.update(x, y, noise)`), so that one who knows the defence can have it as a latent variable; without it, ε = 0.

Source: Scheliga, Mäder and Seeland, PRECODE - A Generic Model Extension to Prevent Deep Gradient Leakage, WACV 2022.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from pplleak.client.last_layer import before_last
from pplleak.errors import require_positive
from pplleak.federation.defences import Attacks

ATTACKS = Attacks("inverting_gradients", "Scheliga et al. 2022", "precode")


class Precode(nn.Module):
    """A network with a bottleneck before its last linear layer: forward(x, ε) gives logits and β KL of every example.

    noise_shape  of ε for one example, (size,)
    """

    def __init__(self, base: nn.Module, last: str, size: int, beta: float) -> None:
        super().__init__()
        features = base.get_submodule(last)
        assert isinstance(features, nn.Linear)
        self.encoder = nn.Linear(features.in_features, 2 * size)
        self.decoder = nn.Linear(size, features.in_features)
        self.base = base  # last: rules that read labels off the last layer look at the end of the gradient
        self.last, self.beta, self.noise_shape = last, beta, (size,)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (batch, num_classes) and β KL (batch,); the logits alone at ε = 0 where no noise is given."""
        kl: list[Tensor] = []

        def squeeze(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            mean, raw = self.encoder(inputs[0]).chunk(2, -1)
            scale = F.softplus(raw)
            kl.append((0.5 * (mean.square() + scale.square() - 1) - scale.log()).sum(-1) / math.log(2))
            return self.decoder(mean if noise is None else mean + scale * noise)

        handle = self.base.get_submodule(self.last).register_forward_pre_hook(squeeze)
        try:
            logits = self.base(x)
        finally:
            handle.remove()
        return logits if noise is None else (logits, self.beta * kl[0])


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
