"""Files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import json as _json
import math
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pplleak.errors import BadInput

ELSEWHERE = "give another folder"


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
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writer(part)
        _sync(part)
        os.replace(part, target)
        with contextlib.suppress(OSError):  # some file systems know no fsync of a folder
            _sync(target.parent)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # a place that cannot be written to cannot be cleaned, either
            part.unlink(missing_ok=True)


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


def figure(path: str | Path, drawn: Any, **settings: Any) -> None:
    """A matplotlib figure, in the format that the name ends in; `settings` are those of `savefig`."""
    write(path, lambda part: drawn.savefig(part, format=Path(path).suffix[1:], **settings))


def prepare(out: str | Path) -> Path:
    """Make a folder for results, and prove that it can be written to before any work is done.

    Raises:
        BadInput: it has no name, or cannot be made or written to.
    """
    if not str(out):
        raise BadInput("the folder for the results has an empty name: give another folder, or . for this one")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".pplleak-probe-{secrets.token_hex(4)}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise BadInput(f"cannot write to {out}: {error.strerror}; {ELSEWHERE}") from error
    return out


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else is between reading and replacing a file of this folder meanwhile, where the system has such locks.

    The lock is on the folder itself, so that no file of it stays behind, and ends with the process that holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two processes in one folder may then forget each other's rows
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror}; {ELSEWHERE}") from error
    try:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
