"""What collections of networks share: those of a collection are made for colour images, and in train mode."""

from __future__ import annotations

from typing import Literal

from torch import nn

Mode = Literal["eval", "train"]


def for_channels(network: nn.Module, channels: int) -> nn.Module:
    """The network with its first convolution made anew for images of so many channels, where it takes three."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != channels:
                parent, _, last = name.rpartition(".")
                first = nn.Conv2d(
                    channels, module.out_channels, module.kernel_size, module.stride, module.padding,  # type: ignore[arg-type]
                    module.dilation, bias=module.bias is not None,  # type: ignore[arg-type]
                )  # fmt: skip
                setattr(network.get_submodule(parent), last, first)
            return network
    return network
