"""The memory that is free: of the machine, and of the control groups that a container runs in."""

from __future__ import annotations

from pathlib import Path

import pytest

from pplleak import memory
from pplleak.errors import BadInput

MIB = 2**20


def machine(root: Path, **files: str) -> Path:
    """A /proc and a /sys with these files; two underscores stand for a slash."""
    for name, content in {"proc__meminfo": "MemTotal: 9999 kB\nMemAvailable: 8192000 kB\n", **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_what_the_machine_has_free(tmp_path: Path) -> None:
    assert memory.available(machine(tmp_path)) == 8000 * MIB


def test_a_group_of_version_2_and_the_ones_above_it(tmp_path: Path) -> None:
    group = {"proc__self__cgroup": "0::/a/b\n", "sys__fs__cgroup__a__memory.max": f"{900 * MIB}\n",
             "sys__fs__cgroup__a__memory.current": f"{500 * MIB}\n", "sys__fs__cgroup__a__b__memory.max": "max\n",
             "sys__fs__cgroup__a__memory.stat": f"anon 1\ninactive_file {100 * MIB}\n"}  # fmt: skip
    assert memory.available(machine(tmp_path, **group)) == 500 * MIB  # 900 − 500, and 100 of files are given back


def test_a_group_of_version_1(tmp_path: Path) -> None:
    group = {"proc__self__cgroup": "3:cpu:/x\n2:memory:/x\n",
             "sys__fs__cgroup__memory__x__memory.limit_in_bytes": str(MIB),
             "sys__fs__cgroup__memory__x__memory.usage_in_bytes": "0"}  # fmt: skip
    assert memory.available(machine(tmp_path, **group)) == MIB


def test_what_does_not_fit_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2 * memory.GIB)
    memory.require(memory.GIB, "a batch", "take a smaller one")
    with pytest.raises(BadInput, match=r"a batch takes about 3 GiB of memory, and 2 GiB are free: take a smaller one"):
        memory.require(3 * memory.GIB, "a batch", "take a smaller one")
