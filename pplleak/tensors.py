"""Named tensors from a file: safetensors only, because reading a pickle runs code.

The header is read and checked first: what it says of types, shapes and places has to be what the file holds, before a
tensor of it is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pplleak import memory, reading
from pplleak.errors import BadInput, printable

HEADER = 16 << 20  # bytes of the longest header: names and shapes of a hundred thousand tensors, and the metadata
NAME = 1000  # letters of the longest name of a tensor
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of an entry
COUNTERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # whole numbers that a network counts with


@dataclass(frozen=True)
class _Entry:
    """What a header says of one tensor."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, without running anything in it.

    Raises:
        BadInput: missing, truncated, pickled or otherwise not a safetensors file; larger than the memory; numbers that
            are neither floating-point ones of 16 bits at least nor whole; NaN or infinity.
    """
    path = Path(path)
    metadata = _checked(path)
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise BadInput(f"{_not_whole(path)}: {printable(error)}") from error
    for name, t in tensors.items():
        if t.is_floating_point() and not _finite(t):
            raise BadInput(f"{printable(path)}: '{printable(name)}' holds NaN or infinity, which no client shares: "
                           "check where it came from")  # fmt: skip
    return tensors, metadata


def _finite(t: Tensor) -> bool:
    """Whether all entries are numbers, with no mask of them all beside a large tensor."""
    return all(bool(part.isfinite().all()) for part in t.reshape(-1).split(1 << 22))


def _checked(path: Path) -> dict[str, str]:
    """The metadata of a file whose header holds."""
    size = reading.regular(path)
    try:
        with open(path, "rb") as f:
            head = f.read(16)
            length = int.from_bytes(head[:8], "little")
            # safetensors begins with the length of its header, any eight bytes, and then the header: JSON
            if head[8:9] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
                raise BadInput(f"{printable(path)} is a pickle (torch.save?), which could run code and is refused: "
                               "write it with `pplleak observe` or safetensors")  # fmt: skip
            if len(head) < 9 or length > size - 8:
                raise BadInput(f"{_not_whole(path)}: its header is longer than the file")
            if length > HEADER:
                raise BadInput(f"{_not_whole(path)}: its header has {length} bytes, more than {HEADER}")
            f.seek(8)
            header = f.read(length)
    except OSError as error:
        raise BadInput(f"cannot read {printable(path)}: {reading.reason(error)}") from error
    named: dict[str, Any] = reading.decoded(header, dict[str, Any], _not_whole(path))
    metadata = reading.typed(named.pop("__metadata__", {}), dict[str, str], f"{printable(path)}: its metadata")
    for name, said in named.items():
        _check_entry(f"{printable(path)}: '{printable(name)}'", name, said, size - 8 - length)
    memory.require(2 * size, f"{printable(path)} ({size} bytes)", "take a machine with more memory")
    return dict(metadata)


def _check_entry(what: str, name: str, said: Any, held: int) -> None:
    entry: _Entry = reading.typed(said, _Entry, what)
    if len(name) > NAME:
        raise BadInput(f"{what}: no tensor has so long a name")
    width = {**FLOATS, **COUNTERS}.get(entry.dtype)
    if width is None:
        raise BadInput(f"{what} holds numbers of the type {printable(entry.dtype, 40)}, which no client computes in: "
                       f"write {', '.join(FLOATS)}")  # fmt: skip
    begin, end = entry.data_offsets
    taken = math.prod(entry.shape) * width if all(n >= 0 for n in entry.shape) else -1
    if taken != end - begin or not 0 <= begin <= end <= held:
        raise BadInput(f"{what}: its shape {printable(entry.shape)} is not that of the bytes it has (truncated?)")


def _not_whole(path: Path) -> str:
    return f"{printable(path)} is not a whole safetensors file (truncated?)"
