"""The networks under attack, one a file: ``NAME.py`` has a function NAME(input_shape, num_classes, *, settings).

It returns an `nn.Module` that takes images (N, *input_shape) and gives logits (N, num_classes); widths and activations
are its keyword-only arguments. Weights are drawn from torch's global generator with torch's own initialisation, where a
network does nothing else; `Client` seeds it, and trained weights are loaded over them. A user's own network is the same
kind of function in a file, FILE.py:FUNCTION.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pplleak import folders, programs
from pplleak.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor, nn

    Network = Callable[..., nn.Module]


def names() -> dict[str, str]:
    """Every built-in network with the first line of its file, read without running it."""
    return folders.names(Path(__file__).parent)


def get(name: str) -> Network:
    """The constructor of a built-in network.

    Raises:
        BadInput: there is none of that name.
    """
    return cast("Network", getattr(folders.load(__name__, "network", name), name))


def load(name: str) -> Network:
    """The constructor of a built-in name, or of FILE.py:FUNCTION, which runs the file; FUNCTION may be a class of
    networks that takes no arguments.

    Raises:
        BadInput: there is no such network, file or function, or the file cannot be run.
    """
    if name in (known := names()):
        return get(name)
    made = programs.named("network", name, known)
    return made if _takes_shape(made) else lambda input_shape, num_classes: made()


def _takes_shape(made: Callable[..., Any]) -> bool:
    """False for a class of networks that is called without arguments, as people have them."""
    if not inspect.isclass(made):
        return True
    given = inspect.signature(made).parameters.values()
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in given)


@dataclass(frozen=True, eq=False)
class Normalise:
    """A hook before a network's forward pass: it sees (x − mean) / sd, of x (…, *input_shape) in [0, 1].

    mean, sd: float64, in a shape that broadcasts against one example.
    """

    mean: Tensor
    sd: Tensor

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *noise = args
        return ((x - self.mean.to(x)) / self.sd.to(x), *noise)


def normalised(network: nn.Module, statistics: Sequence[float], input_shape: Sequence[int]) -> nn.Module:
    """The same network, whose inputs are normalised outside of it: its parameters keep their names.

    Args:
        statistics: (mean, sd), or those of each channel, all means first; () leaves the network as it is.

    Raises:
        BadInput: another number of them, or a standard deviation that is not positive.
    """
    if not statistics:
        return network
    import torch

    count, half = len(statistics), len(statistics) // 2
    if count not in (2, 2 * input_shape[0]):
        raise BadInput(f"normalise takes a mean and an sd, or those of each of {input_shape[0]} channels, means first; "
                       f"not {count} numbers")  # fmt: skip
    if not all(map(math.isfinite, statistics)) or min(statistics[half:]) <= 0:
        raise BadInput(f"normalise takes finite means and positive sds, not {' '.join(map(str, statistics))}")
    shape = (-1, *(1,) * (len(input_shape) - 1))
    mean, sd = (torch.tensor(v, dtype=torch.float64).reshape(shape) for v in (statistics[:half], statistics[half:]))
    network.register_forward_pre_hook(Normalise(mean, sd))
    return network
