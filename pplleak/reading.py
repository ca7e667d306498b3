"""Files from others, read as data: one that is no file, too large, nested too deep or of another type is refused.

Every reader of the library begins here, so that what a file may be is decided once: `regular` before it is opened,
`contents` for what fits into memory, `decoded` and `typed` for JSON that a declared type (a dataclass, as `msgspec`
reads it) says the kinds of, `arrays` for numpy's. What they raise is `BadInput`, in one line, whatever the bytes are.
"""

from __future__ import annotations

import math
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplleak.errors import BadInput, printable

if TYPE_CHECKING:
    import numpy as np

MOST = 256 << 20  # bytes of a text file: a table of a million rows has fewer
NUMBER = 1e300  # the largest that a setting may be


def regular(path: str | Path, most: int | None = None) -> int:
    """The bytes that a file holds, without opening it.

    Raises:
        BadInput: it is not there, is no regular file (a folder, a pipe, a device, a loop of links), cannot be named on
            this system, or holds more than `most` bytes.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise BadInput(f"cannot read {printable(path)}: {reason(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file (a pipe or a device)"
        raise BadInput(f"cannot read {printable(path)}: it is {kind}; name a file")
    if most is not None and found.st_size > most:
        raise BadInput(
            f"{printable(path)} has {found.st_size} bytes, and such a file no more than {most}: it is another"
        )
    return found.st_size


def contents(path: str | Path, most: int = MOST) -> bytes:
    """A file's bytes; raises BadInput as `regular` does, and where it cannot be opened."""
    regular(path, most)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {printable(path)}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What went wrong, without the name that the message has already."""
    return getattr(error, "strerror", None) or printable(str(error))


def decoded(text: str | bytes, kind: Any, what: str) -> Any:
    """JSON as a declared type.

    Args:
        kind: a dataclass, `dict[str, Any]`, `list[int]`, …: all that msgspec knows; numbers are in the range of JSON's
            readers, and NaN is none. what: the text, at the head of the message.

    Raises:
        BadInput: it is no JSON, nests too deep, holds a number that is too large, or is of another type.
    """
    import msgspec

    try:
        return msgspec.json.decode(text, type=kind)
    except RecursionError as error:
        raise BadInput(f"{what}: it is nested too deep") from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BadInput(f"{what}: {printable(error)}") from error


def typed(value: Any, kind: Any, what: str) -> Any:
    """A value as a declared type, without being converted from words; raises BadInput for another, for NaN, and for a
    number that no float holds."""
    import msgspec

    numbers(value, what)
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.MsgspecError, RecursionError, OverflowError) as error:
        said = what if isinstance(value, dict) else f"{what} is {printable(_short(value), 80)}"
        raise BadInput(f"{said}: {printable(error)}") from error
    except TypeError:  # a type that msgspec does not know: who asked for it checks it
        return value


def metadata[Kind](raw: Mapping[str, str], kind: type[Kind], what: str) -> Kind:
    """The metadata of a safetensors file, words of JSON by name, as a declared dataclass; raises BadInput as `decoded`
    and `typed` do. Names that the dataclass has not are passed over."""
    known = [f.name for f in fields(kind) if f.name in raw]  # type: ignore[arg-type]
    values = {name: decoded(raw[name], Any, f"{what} '{name}' is not readable") for name in known}
    made: Kind = typed(values, kind, what)
    return made


def numbers(value: Any, what: str) -> None:
    """Raise BadInput where NaN or a number that no float holds is among the numbers of a value."""
    if any(math.isnan(n) or (math.isfinite(n) and abs(n) > NUMBER) for n in _numbers(value)):
        raise BadInput(f"{what} is {printable(_short(value), 80)}: give a number")


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, int | float):
        yield float(value) if isinstance(value, float) or abs(value) < 2**1000 else math.nan
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)


def _short(value: Any) -> str:
    """A value in words; a number of thousands of digits by its length."""
    if isinstance(value, int) and abs(value) >= 2**1000:
        return f"a number of {int(abs(value).bit_length() * math.log10(2)) + 1} digits"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_short, value[:5]))}{', …' if len(value) > 5 else ''}]"
    return repr(value)


def arrays(path: str | Path, kinds: Mapping[str, type], most: int = MOST) -> dict[str, np.ndarray]:
    """The named arrays of an .npz, without unpickling.

    Args:
        kinds: name -> float, int, bool or str: what an array of that name holds. most: bytes of all arrays together.

    Raises:
        BadInput: it is no such file, or unpacks to more than `most` bytes.
    """
    import zipfile

    import numpy as np

    regular(path, most)
    try:
        with zipfile.ZipFile(path) as packed:
            unpacked = sum(member.file_size for member in packed.infolist())
        if unpacked > most:
            raise BadInput(f"{printable(path)} unpacks to {unpacked} bytes, more than the {most} that it may hold")
        with np.load(path, allow_pickle=False) as kept:
            values = {name: kept[name] for name in kinds}
    except BadInput:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header raise a dozen kinds
        raise BadInput(f"cannot read {printable(path)}: {printable(error)}") from error
    for name, kind in kinds.items():
        families = {float: "fiu", int: "iu", bool: "b", str: "U"}[kind]
        if not isinstance(values[name], np.ndarray) or values[name].dtype.kind not in families:
            raise BadInput(f"cannot read {printable(path)}: its '{name}' does not hold {kind.__name__}s")
    return values


def encodable(words: Iterable[str]) -> None:
    """Raise BadInput for a word of the command line that is not UTF-8, or that no file can be called by: results that
    name it could not be written after the work."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise BadInput(f"{printable(os.fsencode(word))} is not UTF-8 ({sys.getfilesystemencoding()} names are "
                           "written into the results): rename the file") from error  # fmt: skip
        if "\0" in word:
            raise BadInput(f"{printable(word)} holds a zero byte: no file can be called that")
