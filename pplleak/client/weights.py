"""Weights from a file: safetensors only, because reading a pickle runs code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pplleak.errors import BadInput


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, without running anything in it.

    Raises:
        BadInput: missing, truncated, pickled or otherwise not a safetensors file; NaN or infinity in it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as f:
            head = f.read(16)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    # safetensors begins with the length of its header, any eight bytes, and then the header: JSON
    if head[8:9] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise BadInput(f"{path} is a pickle (torch.save?), which could run code and is refused: write it with "
                       "`pplleak observe` or safetensors")  # fmt: skip
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"{path} is not a whole safetensors file (truncated?): {error}") from error
    for name, t in tensors.items():
        if t.is_floating_point() and not t.isfinite().all():
            raise BadInput(f"{path}: '{name}' holds NaN or infinity, which no client shares: check where it came from")
    return tensors, metadata


def state(network: nn.Module) -> dict[str, Tensor]:
    """Everything that the network computes with: its parameters, and the statistics of its normalisations."""
    kept = network.state_dict().keys()
    buffers = {n: b for n, b in network.named_buffers() if n in kept and b.is_floating_point()}
    return {**dict(network.named_parameters()), **buffers}


def running(network: nn.Module) -> list[str]:
    """Names of the running statistics that a network in evaluation mode normalises with."""
    return [
        f"{name}.{buffer}" if name else buffer
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and not module.training
        for buffer in ("running_mean", "running_var")
        if getattr(module, buffer, None) is not None
    ]


def load(network: nn.Module, tensors: Mapping[str, Tensor], where: str, *, whole: bool = True) -> nn.Module:
    """Put weights into a network of the same layers, and return it.

    Args:
        tensors: names as of `network.state_dict()`. where: what to call them in an error.
        whole: also demand every other buffer that the network keeps. Running statistics that a normalisation in
            evaluation mode computes with are always demanded: they are made up otherwise.

    Raises:
        BadInput: they belong to another network, or lack running statistics.
    """
    own = state(network)
    given = {n: t for n, t in tensors.items() if t.is_floating_point()}  # a counter of batches changes no output
    if lacking := [n for n in running(network) if n not in given]:
        raise BadInput(f"{where} lacks {', '.join(lacking[:3])}: the network normalises with the statistics that it "
                       "tracked in training; write its state_dict(), which has them beside the parameters")  # fmt: skip
    needed = own if whole else {n: t for n, t in own.items() if n in given or isinstance(t, nn.Parameter)}
    same_layers({n: t.shape for n, t in needed.items()}, {n: t.shape for n, t in given.items()}, where)
    with torch.no_grad():
        for name, t in given.items():
            own[name].copy_(t)
    return network


def same_layers(ours: Mapping[str, torch.Size], theirs: Mapping[str, torch.Size], where: str) -> None:
    """Raise BadInput for the first differences between the network's tensors and those of a file."""
    missing, extra = [n for n in ours if n not in theirs], [n for n in theirs if n not in ours]
    if missing or extra:
        differences = [f"lacks {', '.join(missing[:3])}"] if missing else []
        differences += [f"has {', '.join(extra[:3])}, which the network has not"] if extra else []
        raise BadInput(f"{where} is of another network: it {' and '.join(differences)}; name its own network")
    for name, shape in ours.items():
        if theirs[name] != shape:
            raise BadInput(
                f"{where}: '{name}' has shape {tuple(theirs[name])}, the network's has {tuple(shape)}; "
                "name the network that shared it, with its settings"
            )
