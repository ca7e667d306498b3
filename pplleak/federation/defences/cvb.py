"""Convolutional variational bottleneck (Scheliga et al. 2023): PRECODE early in the network.

    [μ, s] = C_E * h,   σ = log(1 + exp s),   b = μ + σ ⊙ ε,  ε ~ Normal(0, I),   ĥ = C_D * b
    ℓ = cross entropy + beta · KL(Normal(μ, σ²) ‖ Normal(0, I)) / log 2,   a mean over positions, a sum over the K

behind the first convolution, whose output h (channels, height, width) is replaced by ĥ of the same shape; C_E and C_D
are convolutions of 3 × 3 with bias, b has K channels. An attack on PRECODE may leave its layers and those behind it
out of the matching, for the gradients of those before it are not noisy; behind the first layer few are left. Each
example draws its noise, an input of the network (`Client.update(x, y, noise)`): `models/precode.py` has it as a latent,
and so knows this defence, too.

Source: Scheliga, Mäder and Seeland, Privacy Preserving Federated Learning with Convolutional Variational Bottlenecks,
arXiv 2309.04515, of which the abstract was read: the place, the kernels' size and how the KL is averaged are choices
made here; softplus, beta and bits are those of PRECODE's code.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplleak.errors import BadInput, require_positive
from pplleak.federation.defences import Attacks

ATTACKS = Attacks("inverting_gradients", "Scheliga et al. 2023", "precode")


class CVB(nn.Module):
    """A network with a bottleneck behind one convolution: forward(x, ε) gives logits and β KL of every example.

    noise_shape  of ε for one example, (K, height, width)
    """

    def __init__(self, base: nn.Module, first: str, shape: tuple[int, ...], size: int, beta: float) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(shape[0], 2 * size, 3, padding=1)
        self.decoder = nn.Conv2d(size, shape[0], 3, padding=1)
        self.base, self.first, self.beta = base, first, beta  # base last: rules for labels look at the gradient's end
        self.noise_shape = (size, *shape[1:])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (batch, num_classes) and β KL (batch,); the logits alone at ε = 0 where no noise is given."""
        kl: list[Tensor] = []

        def squeeze(module: nn.Module, inputs: tuple[Tensor], h: Tensor) -> Tensor:
            mean, raw = self.encoder(h).chunk(2, 1)
            scale = F.softplus(raw)
            each = 0.5 * (mean.square() + scale.square() - 1) - scale.log()
            kl.append(each.mean((2, 3)).sum(1) / math.log(2))
            found: Tensor = self.decoder(mean if noise is None else mean + scale * noise)
            return found

        handle = self.base.get_submodule(self.first).register_forward_hook(squeeze)
        try:
            logits = self.base(x)
        finally:
            handle.remove()
        return logits if noise is None else (logits, self.beta * kl[0])


def network(
    base: nn.Module, input_shape: tuple[int, ...], num_classes: int, *, size: int = 8, beta: float = 1e-3
) -> nn.Module:
    """The network with the bottleneck behind its first convolution.

    Args:
        size: channels of the bottleneck, K.
        beta: weight of the KL divergence in the loss, in bits.
    """
    require_positive(**{"cvb's size": size, "cvb's beta": beta})
    first = next((name for name, module in base.named_modules() if isinstance(module, nn.Conv2d)), "")
    if not first:
        raise BadInput("cvb goes behind the first convolution, and the network has none: take precode")
    made, shapes = copy.deepcopy(base), []
    handle = made.get_submodule(first).register_forward_hook(
        lambda module, inputs, h: shapes.append(tuple(h.shape[1:]))
    )
    with torch.no_grad():
        made(torch.zeros(1, *input_shape))
    handle.remove()
    if len(shapes) != 1:
        raise BadInput(f"cvb goes behind the network's first convolution, and '{first}' is used {len(shapes)} times")
    return CVB(made, first, shapes[0], size, beta)
