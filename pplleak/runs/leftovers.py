"""What a process that was killed in the middle of writing leaves behind: its half-written files, known by their names.

.NAME.NODE-PID-RANDOM.part     beside NAME: which machine's process was writing it
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import time
import zlib
from pathlib import Path

NODE = f"{zlib.crc32(platform.node().encode()):08x}"  # of this machine: processes of another cannot be asked after
PART = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part$")
DAY = 24 * 3600.0  # s: no file takes longer to write


def part(target: Path) -> Path:
    """A hidden name beside a file, for what is to replace it: nobody else's, and told from those of other processes."""
    return target.with_name(f".{target.name[:40]}.{NODE}-{os.getpid()}-{secrets.token_hex(4)}.part")


def sweep(folder: Path) -> None:
    """Remove what dead processes were writing in a folder; what a living one writes is left alone."""
    for path in folder.glob(".*.part"):
        if (found := PART.search(path.name)) is None:
            continue
        with contextlib.suppress(OSError):  # gone already, or not ours to remove
            dead = found[1] == NODE and not _alive(int(found[2]))
            if dead or time.time() - path.stat().st_mtime > DAY:
                path.unlink()


def _alive(process: int) -> bool:
    if os.name == "nt":  # there, the question would be answered by interrupting it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
