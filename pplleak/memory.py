"""How much memory is there: what is asked for is compared with it before it is taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pplleak.errors import BadInput

GIB = 2**30
UNKNOWN = 2**62  # where a system does not say
FREED = ("inactive_file", "active_file")  # the system's copies of files


def available(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: the least of what the machine has free, of what its control groups (v1
    and v2, those of a container) leave it, and of its own limit of addresses.

    Args:
        root: where /proc and /sys lie.
    """
    return max(0, min([_of_machine(root), _of_process(root), *_of_groups(root)]))


def require(needed: float, what: str, mend: str) -> None:
    """Raise BadInput where something takes more bytes than there are.

    Args:
        what: takes them, at the head of the message. mend: what to do instead.
    """
    free = available()
    if needed > free:
        raise BadInput(f"{what} takes about {_said(needed)} of memory, and {_said(free)} are free: {mend}")


def _said(count: float) -> str:
    return f"{count / GIB:.3g} GiB" if count < 1e6 * GIB else f"{count / GIB:.1e} GiB"


def _of_machine(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return UNKNOWN


def _of_process(root: Path) -> int:
    try:
        import resource
    except ImportError:  # Windows
        return UNKNOWN
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return UNKNOWN
    pages = _read(root / "proc/self/statm").split()
    return limit - (int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0)


def _of_groups(root: Path) -> Iterator[int]:
    """What every group that this process is in leaves free; a container sees its own group at the root."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, inside = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            yield from _along(root / "sys/fs/cgroup", inside, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            yield from _along(top, inside, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _along(top: Path, inside: str, limit: str, used: str) -> Iterator[int]:
    place = top / inside.strip("/")
    for folder in (place, *place.parents):
        most = _read(folder / limit).strip()
        if most.isdigit():
            taken = _read(folder / used).strip()
            files = [int(n) for name, n in _table(folder / "memory.stat") if name in FREED]  # given back when asked for
            yield int(most) - (int(taken) if taken.isdigit() else 0) + sum(files)
        if folder == top:
            return


def _table(path: Path) -> Iterator[tuple[str, str]]:
    for line in _read(path).splitlines():
        name, _, count = line.partition(" ")
        if count.isdigit():
            yield name, count


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
