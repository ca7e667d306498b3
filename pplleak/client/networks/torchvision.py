"""Any classification network of torchvision by its name, with random weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models

from pplleak.client.networks._mode import Mode
from pplleak.errors import unknown

PLAIN = {"init_weights": False, "aux_logits": False}  # torch's own initialisation, and one output


def torchvision(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    arch: str = "resnet18",
    mode: Mode = "eval",
) -> nn.Module:
    """Any classification network of torchvision by its name, with random weights.

    Args:
        arch: as torchvision names it: resnet50, mobilenet_v3_small, convnext_tiny, vit_b_16, …
        mode: eval, or train: BatchNorm takes the statistics of the client's own batch, dropout and stochastic depth
            are on.
    """
    if arch not in (known := models.list_models(module=models)):
        raise unknown("network of torchvision", arch, known)
    settings: dict[str, Any] = {}
    if arch.startswith("vit_"):
        settings["image_size"] = input_shape[-1]
    elif arch.startswith("maxvit_"):
        settings["input_size"] = tuple(input_shape[1:])
    elif arch in ("googlenet", "inception_v3"):
        settings = PLAIN
    network = models.get_model(arch, num_classes=num_classes, **settings)
    return _for_channels(network, input_shape[0]).train(mode == "train")


def _for_channels(network: nn.Module, channels: int) -> nn.Module:
    """The network with its first convolution, which is made for colour images, for images of so many channels."""
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels != channels:
        parent, _, last = name.rpartition(".")
        other = nn.Conv2d(
            channels, first.out_channels, first.kernel_size, first.stride, first.padding,  # type: ignore[arg-type]
            first.dilation, bias=first.bias is not None,  # type: ignore[arg-type]
        )  # fmt: skip
        setattr(network.get_submodule(parent), last, other)
    return network
