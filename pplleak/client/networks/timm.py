"""Any network of timm by its name, with random weights (the extra `timm`)."""

from __future__ import annotations

from typing import Any

from torch import nn

from pplleak.client.networks._mode import Mode
from pplleak.errors import BadInput, unknown


def timm(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    arch: str = "resnet18",
    mode: Mode = "eval",
) -> nn.Module:
    """Any network of timm by its name, with random weights (the extra `timm`).

    Args:
        arch: as timm lists it: resnet26d, convnextv2_atto, efficientnet_lite0, vit_tiny_patch16_224, …
        mode: eval, or train: BatchNorm takes the statistics of the client's own batch, dropout and stochastic depth
            are on.
    """
    try:
        from timm import create_model, list_models
    except ImportError as error:
        raise BadInput("networks of timm need timm: pip install 'pplleak[timm]'") from error
    if arch not in (known := list_models()):  # never a name that timm would fetch from somewhere
        raise unknown("network of timm", arch, known)
    settings: dict[str, Any] = {"pretrained": False, "num_classes": num_classes, "in_chans": input_shape[0]}
    try:
        network = create_model(arch, img_size=tuple(input_shape[1:]), **settings)
    except TypeError:  # of one that takes images of any size
        network = create_model(arch, **settings)
    return network.train(mode == "train")
