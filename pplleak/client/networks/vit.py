"""The ViT of torchvision: patches as tokens, a class token, learnt positions, self-attention. Smooth by default."""

from __future__ import annotations

from torch import nn
from torchvision.models import VisionTransformer

from pplleak.client.networks._activations import Activation, swap
from pplleak.errors import BadInput


def vit(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    patch: int = 4,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    activation: Activation = "gelu",
) -> nn.Module:
    """The ViT of torchvision: patches as tokens, a class token, learnt positions, self-attention. Smooth by default.

    Weights start as torchvision's, but those of the last layer: torchvision's zeros would share nothing of the image.

    Args:
        patch: side of a patch in pixels; it divides the image's side.
        width: features of a token; the heads divide it.
        depth: encoder blocks.
        heads: attention heads.
        activation: the non-linearity between the two linear layers of a block.
    """
    channels, *sides = input_shape
    if len(sides) != 2 or sides[0] != sides[1] or sides[0] % patch:
        raise BadInput(f"vit cuts square images into patches of {patch}x{patch}, and images are {input_shape}: "
                       "set patch to a divisor of their side")  # fmt: skip
    if width % heads:
        raise BadInput(f"vit splits its width over the heads, and {width} is no multiple of {heads}")
    network = VisionTransformer(sides[0], patch, depth, heads, width, 2 * width, num_classes=num_classes)
    if channels != 3:
        network.conv_proj = nn.Conv2d(channels, width, patch, stride=patch)
    nn.init.normal_(network.heads.head.weight, std=0.02)
    return swap(network, nn.GELU, activation)
