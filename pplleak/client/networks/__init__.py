"""The networks under attack, one a file: ``NAME.py`` has a function NAME(input_shape, num_classes, *, settings).

It returns an `nn.Module` that takes images (N, *input_shape) and gives logits (N, num_classes); widths and activations
are its keyword-only arguments. Weights are drawn from torch's global generator with torch's own initialisation, where a
network does nothing else; `Client` seeds it, and trained weights are loaded over them. A user's own network is the same
kind of function in a file, FILE.py:FUNCTION.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pplleak import folders, programs
from pplleak.errors import BadInput, unknown

if TYPE_CHECKING:
    from torch import nn

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
    """The constructor of a built-in name, or of FILE.py:FUNCTION, which runs the file.

    Raises:
        BadInput: there is no such network, file or function, or the file cannot be run.
    """
    if name in (known := names()):
        return get(name)
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise unknown("network", name, known, "Or give FILE.py:FUNCTION.")
    if not Path(file).is_file():
        raise BadInput(f"no file {file}")
    return programs.function(Path(file), function)
