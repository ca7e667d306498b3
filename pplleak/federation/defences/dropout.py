"""Dropout (Srivastava et al. 2014) before the last layer: a gradient of a network that nobody has.

    ĥ = m ⊙ h / (1 − rate),     m_i ~ Bernoulli(1 − rate),     m_i = 1 where |ε_i| ≤ Φ⁻¹(1 − rate / 2), ε ~ Normal(0, I)

h are the features that the last linear layer takes. Every example draws its own mask, and the gradient is that of the
thinned network: an attack that differentiates the whole one matches another function. Scheliga et al. (2023)
reconstruct image and mask together.

The mask is a function of standard normal noise, which the network takes as an input (`Client.update(x, y, noise)`), so
that one who knows the defence can have it as a latent variable: `pplleak.client.masks`, which does the same for a
network's own dropout in train mode.

Source: Scheliga, Mäder and Seeland, Dropout is NOT All You Need to Prevent Gradient Leakage, AAAI 2023.
"""

from __future__ import annotations

from torch import Tensor, nn

from pplleak.client.last_layer import before_last
from pplleak.client.masks import mask
from pplleak.errors import BadInput
from pplleak.federation.defences import Attacks

ATTACKS = Attacks("inverting_gradients", "Scheliga et al. 2023, before they know the mask", "dropout")


class Dropout(nn.Module):
    """A network with dropout before its last linear layer: forward(x, ε) gives logits and 0 of every example.

    noise_shape  of ε for one example, (features,)
    """

    def __init__(self, base: nn.Module, last: str, rate: float) -> None:
        super().__init__()
        layer = base.get_submodule(last)
        assert isinstance(layer, nn.Linear)
        self.base, self.last, self.rate = base, last, rate
        self.noise_shape = (layer.in_features,)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (batch, num_classes) and zeros (batch,); the whole network's logits alone where no noise is given."""
        if noise is None:
            logits: Tensor = self.base(x)
            return logits
        scale = mask(noise, self.rate) / (1 - self.rate)
        handle = self.base.get_submodule(self.last).register_forward_pre_hook(lambda _, inputs: inputs[0] * scale)
        try:
            logits = self.base(x)
        finally:
            handle.remove()
        return logits, 0 * logits[:, 0]


def network(base: nn.Module, input_shape: tuple[int, ...], num_classes: int, *, rate: float = 0.5) -> nn.Module:
    """The network with dropout before its last linear layer.

    Args:
        rate: the probability that a feature is dropped, in (0, 1).
    """
    if not 0 < rate < 1:
        raise BadInput(f"dropout's rate must be above 0 and below 1 (the share of features dropped), not {rate}")
    return before_last(lambda copy, last: Dropout(copy, last, rate), base, input_shape, num_classes, "dropout")
