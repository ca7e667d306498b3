"""Which parameters a set of named tensors is of: tied ones by any of their names, sparse ones by indices and values.

    fc.weight                                     the gradient of a parameter, dense
    fc.weight.indices, fc.weight.values           the same, sparse: what is not named is 0, what is named twice adds up

`indices` are whole numbers, (n,) into the flat tensor with `values` (n,), or (k, n) into its first k dimensions with
`values` (n, …), as `torch.sparse_coo_tensor` has them (the gradient of an `nn.Embedding(sparse=True)`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pplleak.errors import BadInput, printable

INDICES, VALUES = ".indices", ".values"
WRAPPERS = ("module.", "_orig_mod.")  # before the names of networks in DataParallel, and of compiled ones


class NotShared(BadInput):
    """Tensors lack some of the network's parameters, and nobody said that those were not shared."""


def owners(network: nn.Module) -> dict[str, str]:
    """Every name of a parameter -> the first one, under which a client knows it."""
    first = {id(p): name for name, p in network.named_parameters()}
    return {name: first[id(p)] for name, p in network.named_parameters(remove_duplicate=False)}


def by_owner(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same tensors with tied parameters under their first name, whichever of their names they came by; of a network
    that was wrapped, without the wrapper's.

    Raises:
        BadInput: two names of one parameter with different values.
    """
    first = owners(network)
    for wrapper in WRAPPERS:
        if all(n.startswith(wrapper) for n in tensors) and not any(n.startswith(wrapper) for n in first):
            tensors = {n.removeprefix(wrapper): t for n, t in tensors.items()}
    named: dict[str, Tensor] = {}
    for name, t in tensors.items():
        end = next((e for e in (INDICES, VALUES) if name.endswith(e) and name not in first), "")
        owner = first.get(name.removesuffix(end), name.removesuffix(end)) + end
        if owner in named and not (named[owner].shape == t.shape and torch.equal(named[owner], t)):
            raise BadInput(f"{where}: '{printable(name)}' and '{printable(owner)}' are one parameter of the network "
                           "(tied), and hold different values: write it once")  # fmt: skip
        named[owner] = t
    return named


def withheld(network: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The trainable parameters of a network that the tensors (`by_owner`) do not hold."""
    return tuple(
        n for n, p in network.named_parameters() if p.requires_grad and n not in tensors and n + VALUES not in tensors
    )


def dense(layers: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same tensors with sparse ones (of either form, in Python torch's own, too) written out.

    Args:
        layers: name -> shape of the parameters.

    Raises:
        BadInput: indices outside of the parameter, or of another number than the values.
    """
    made = {n: t.to_dense() if t.layout != torch.strided else t for n, t in tensors.items()}
    for name, shape in layers.items():
        if name not in made and name + INDICES in made and name + VALUES in made:
            what = f"{where}: the sparse '{printable(name)}'"
            made[name] = _written_out(made.pop(name + INDICES), made.pop(name + VALUES), shape, what)
    return made


def _written_out(indices: Tensor, values: Tensor, shape: torch.Size, what: str) -> Tensor:
    if indices.is_floating_point() or indices.dtype == torch.bool or not values.is_floating_point():
        raise BadInput(f"{what} needs whole numbers as indices and floating-point values, not {indices.dtype} and "
                       f"{values.dtype}")  # fmt: skip
    if indices.dim() == 1:
        sizes, at = torch.Size([shape.numel()]), indices[None].long()
    else:
        sizes, at = shape, indices.long()
    if at.dim() != 2 or not 1 <= len(at) <= len(sizes) or values.shape != (at.shape[1], *sizes[len(at) :]):
        raise BadInput(f"{what} has indices {tuple(indices.shape)} and values {tuple(values.shape)}, which do not fit "
                       f"its shape {tuple(shape)}: (n,) and (n,), or (k, n) and (n, …)")  # fmt: skip
    limits = torch.tensor(sizes[: len(at)])[:, None]
    if bool(((at < 0) | (at >= limits)).any()):
        raise BadInput(f"{what} has an index outside of its shape {tuple(shape)}")
    flat = (at * torch.tensor([math.prod(sizes[k + 1 : len(at)]) for k in range(len(at))])[:, None]).sum(0)
    rows = values.new_zeros(math.prod(sizes[: len(at)]), *sizes[len(at) :])
    return rows.index_add(0, flat, values).reshape(shape)
