"""Files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import json as _json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplleak.errors import BadInput
from pplleak.runs import leftovers

if TYPE_CHECKING:
    from torch import Tensor

ELSEWHERE = "give another folder"
FULL = {errno.ENOSPC, errno.EDQUOT}


def write(path: str | Path, writer: Callable[[Path], object]) -> None:
    """Make or replace a file, atomically: a reader, and a run after a kill, see the old file or the new one.

    Args:
        path: the file; where it is a link, what it points to is replaced.
        writer: writes the whole file under the name that it is given. That name lies in the same folder, is nobody
            else's (two processes do not fight for it), and does not end as `path` does.

    Raises:
        BadInput: the file cannot be written, a full disk included. What was there before is untouched.
    """
    target = Path(os.path.realpath(path))
    part = leftovers.part(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writer(part)
        _sync(part)
        os.replace(part, target)
        with contextlib.suppress(OSError):  # some file systems know no fsync of a folder
            _sync(target.parent)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {refused(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # a place that cannot be written to cannot be cleaned, either
            part.unlink(missing_ok=True)


def refused(error: OSError) -> str:
    """Why something cannot be written, and what to do about it."""
    found = re.search(r"\berrno = (\d+)", str(error))  # HDF5 tells the number in the midst of a long text
    number = int(found[1]) if found and error.errno is None else error.errno
    why = os.strerror(number) if number else str(error)
    mend = "make room" if number in FULL else ELSEWHERE
    return f"{why}; {mend}, what was finished before is kept"


def unwritable(folder: Path, error: OSError) -> BadInput:
    """The error for a folder that no results can be put into."""
    return BadInput(f"cannot write to {folder}: {error.strerror}; {ELSEWHERE}")


def _sync(path: Path) -> None:
    """Onto the disk: a rename that survives a power cut must not come before the bytes that it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def text(path: str | Path, content: str) -> None:
    """A text file in UTF-8, its line ends as they are; `write` says how, and what it raises."""
    write(path, lambda part: part.write_bytes(content.encode()))


def json(path: str | Path, value: Any) -> None:
    """A JSON file. NaN and the infinities become null, which every JSON reader knows; what JSON has no word for (a
    path) becomes its `str`."""
    text(path, _json.dumps(_finite(value), indent=2, allow_nan=False, default=str) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def tensors(path: str | Path, named: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, the same byte for byte whenever it holds the same: safetensors itself leaves the order of the
    metadata to chance."""
    from safetensors.torch import save

    packed = memoryview(save({n: t.detach().cpu().contiguous() for n, t in named.items()}, dict(metadata)))
    begin = 8 + int.from_bytes(packed[:8], "little")  # of the numbers, behind a header of JSON and its length
    header = _json.loads(bytes(packed[8:begin]))
    header["__metadata__"] = dict(sorted(metadata.items()))
    head = _json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)

    def fill(part: Path) -> None:
        with open(part, "wb") as file:
            file.writelines((len(head).to_bytes(8, "little"), head, packed[begin:]))

    write(path, fill)


def figure(path: str | Path, drawn: Any, **settings: Any) -> None:
    """A matplotlib figure, in the format that the name ends in; `settings` are those of `savefig`."""
    write(path, lambda part: drawn.savefig(part, format=Path(path).suffix[1:], **settings))


def prepare(out: str | Path) -> Path:
    """Make a folder for results, prove that it can be written to before any work is done, and clear away what processes
    that were killed had half written there.

    Raises:
        BadInput: it has no name, or cannot be made or written to.
    """
    if not str(out):
        raise BadInput("the folder for the results has an empty name: give another folder, or . for this one")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = leftovers.part(out / "probe")
        try:
            probe.write_text("")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    leftovers.sweep(out)
    return out
