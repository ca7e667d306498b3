"""A variational bottleneck at one place of a network: what PRECODE and its convolutional successor have in common.

[μ, s] = E(h),   σ = log(1 + exp s),   b = μ + σ ⊙ ε,  ε ~ Normal(0, I),   ĥ = D(b)
KL(Normal(μ, σ²) ‖ Normal(0, I)) / log 2,   a sum over the K channels of b, a mean over its positions
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """A network with a bottleneck: forward(x, ε) gives logits and β KL of every example.

    place        the module of the network at which ĥ takes the place of h: of its input, or of its output (`behind`)
    noise_shape  of ε for one example, (K, *positions)
    """

    def __init__(
        self, base: nn.Module, place: str, encoder: nn.Module, decoder: nn.Module, *,
        noise_shape: tuple[int, ...], beta: float, behind: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.base = base  # last: rules that read labels off the last layer look at the end of the gradient
        self.place, self.noise_shape, self.beta, self.behind = place, noise_shape, beta, behind

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (batch, num_classes) and β KL (batch,); the logits alone at ε = 0 where no noise is given."""
        kl: list[Tensor] = []

        def squeeze(h: Tensor) -> Tensor:
            mean, raw = self.encoder(h).chunk(2, 1)
            scale = F.softplus(raw)
            each = 0.5 * (mean.square() + scale.square() - 1) - scale.log()
            kl.append((each.flatten(2).mean(2) if each.dim() > 2 else each).sum(1) / math.log(2))
            squeezed: Tensor = self.decoder(mean if noise is None else mean + scale * noise)
            return squeezed

        place = self.base.get_submodule(self.place)
        if self.behind:
            handle = place.register_forward_hook(lambda module, inputs, h: squeeze(h))
        else:
            handle = place.register_forward_pre_hook(lambda module, inputs: squeeze(inputs[0]))
        try:
            logits = self.base(x)
        finally:
            handle.remove()
        return logits if noise is None else (logits, self.beta * kl[0])
