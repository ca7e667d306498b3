"""Weights, and whether they are those of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pplleak.client import sharing
from pplleak.errors import BadInput, printable
from pplleak.tensors import read as read


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
        tensors: names as of `network.state_dict()`; tied ones by any of their names. where: what errors call them.
        whole: also demand every other buffer that the network keeps. Running statistics that a normalisation in
            evaluation mode computes with are always demanded: they are made up otherwise.

    Raises:
        BadInput: they belong to another network, or lack running statistics.
    """
    fits(network, tensors, where, whole=whole)
    own = state(network)
    with torch.no_grad():
        for name, t in _weights(sharing.by_owner(network, tensors, where)).items():
            own[name].copy_(t)
    return network


def fits(network: nn.Module, tensors: Mapping[str, Tensor], where: str, *, whole: bool = True) -> None:
    """Raise BadInput where weights are not those of a network, which may lie on the meta device; args as for `load`."""
    own, given = state(network), _weights(sharing.by_owner(network, tensors, where))
    if lacking := [n for n in running(network) if n not in given]:
        raise BadInput(f"{where} lacks {', '.join(lacking[:3])}: the network normalises with the statistics that it "
                       "tracked in training; write its state_dict(), which has them beside the parameters")  # fmt: skip
    needed = own if whole else {n: t for n, t in own.items() if n in given or isinstance(t, nn.Parameter)}
    same_layers({n: t.shape for n, t in needed.items()}, {n: t.shape for n, t in given.items()}, where)


def _weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in tensors.items() if t.is_floating_point()}  # a counter of batches changes no output


def same_layers(ours: Mapping[str, torch.Size], theirs: Mapping[str, torch.Size], where: str) -> None:
    """Raise BadInput for the first differences between the network's tensors and those of a file."""
    missing, extra = [n for n in ours if n not in theirs], [n for n in theirs if n not in ours]
    if missing or extra:
        differences = [f"lacks {_few(missing)}"] if missing else []
        differences += [f"has {_few(extra)}, which the network has not"] if extra else []
        raise BadInput(f"{where} is of another network: it {' and '.join(differences)}; name its own network")
    for name, shape in ours.items():
        if theirs[name] != shape:
            raise BadInput(
                f"{where}: '{printable(name)}' has shape {tuple(theirs[name])}, the network's has {tuple(shape)}; "
                "name the network that shared it, with its settings"
            )


def _few(names: list[str]) -> str:
    return ", ".join(printable(n, 80) for n in names[:3])


def seeded(build_network: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Run a network's constructor with torch's generator seeded, and leave the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network()
