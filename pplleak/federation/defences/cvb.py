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

import torch
from torch import nn

from pplleak.errors import BadInput, require_positive
from pplleak.federation.defences import Attacks
from pplleak.federation.defences._bottleneck import Bottleneck

ATTACKS = Attacks("inverting_gradients", "Scheliga et al. 2023", "precode")


class CVB(Bottleneck):
    """The bottleneck behind one convolution, of outputs of `shape`; ε (size, height, width) for one example."""

    def __init__(self, base: nn.Module, first: str, shape: tuple[int, ...], size: int, beta: float) -> None:
        encoder = nn.Conv2d(shape[0], 2 * size, 3, padding=1)
        decoder = nn.Conv2d(size, shape[0], 3, padding=1)
        super().__init__(base, first, encoder, decoder, noise_shape=(size, *shape[1:]), beta=beta, behind=True)


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
