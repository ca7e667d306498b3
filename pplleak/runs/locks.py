"""Who writes where: one process a folder of results, and one at a time what reads a file to replace it.

A lock is the system's (flock): it ends with the process that holds it, however that ends, and can never be stale. Where
the system or the file system has none (Windows, some network disks), nobody is kept out.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from pplleak.errors import BadInput
from pplleak.runs.files import ELSEWHERE, prepare, unwritable

PATIENCE = 2.0  # s: a process that is about to end, or was killed a moment ago, has that long to let go


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else is between reading and replacing a file of this folder meanwhile.

    The lock is on the folder itself, so that no file of it stays behind.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY) if os.name != "nt" else -1
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        _lock(handle, wait=True)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


@contextlib.contextmanager
def claim(out: str | Path, name: str = "", *, kept: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """A folder for results, proved to be writable and rid of dead writers' leftovers, that no other process writes
    to meanwhile.

    Args:
        name: claim only this file of the folder: others of it may be written meanwhile.
        kept: what to say of the folder to whoever interrupts the work where nothing else has been said; "" where
            nothing is kept. Taken if not given: that what was finished is kept, where anything was.

    Raises:
        BadInput: the folder cannot be written to, or another process has claimed it.
        KeyboardInterrupt: as it came, or with what `kept` says.
    """
    out = prepare(out)
    path = out / (f".{name}.lock" if name else ".lock")
    handle = _claimed(path, out / name)
    try:
        yield out
    except KeyboardInterrupt as stop:
        if not str(stop) and (said := (kept or _finished)(out)):
            raise KeyboardInterrupt(said) from None
        raise
    finally:
        if handle >= 0:
            with contextlib.suppress(OSError):
                path.unlink()  # before it is let go: whoever waits sees that it is no longer this file
            os.close(handle)


def _claimed(path: Path, what: Path) -> int:
    """An open handle of the lock file, locked, with who holds it written into it; −1 where there are no locks."""
    if os.name == "nt":
        return -1
    until = time.monotonic() + PATIENCE
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise unwritable(path.parent, error) from error
        try:
            if _lock(handle, wait=False):
                if _same(handle, path):
                    with contextlib.suppress(OSError):  # a full disk: it is held all the same
                        os.ftruncate(handle, 0)
                        os.write(handle, f"process {os.getpid()} since {datetime.now():%Y-%m-%d %H:%M:%S}".encode())
                    return handle
            elif time.monotonic() > until:
                who = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
                raise BadInput(f"{what} is being written by {who}: {ELSEWHERE}, or wait until it is done")
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(0.05)


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file; False where another process has it. True also where there are no locks to be had."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return True
    return True


def _same(handle: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _finished(out: Path) -> str:
    """What an interrupted run may say of its folder: settings alone, and what is hidden, are nothing finished."""
    files = (p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".") and p.suffix != ".json")
    return f"interrupted: what was finished is kept in {out}/, the same command goes on" if any(files) else ""
