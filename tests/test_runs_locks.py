"""One process writes a folder of results; what dead ones left half written goes, and their locks keep nobody out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import killed_while

from pplleak import runs
from pplleak.errors import BadInput
from pplleak.runs import files, leftovers, locks


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture()
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_dead_process_was_writing_is_cleared_away_and_what_a_living_one_writes_is_not(
    dead: int, tmp_path: Path
) -> None:
    parent, node = os.getppid(), leftovers.NODE
    living, elsewhere, mine = (f".a.csv.{n}-{p}-00000000.part" for n, p in ((node, parent), ("f" * 8, dead), (node, 0)))
    old, left = f".a.csv.{'e' * 8}-{dead}-00000000.part", f".a.csv.{node}-{dead}-0123abcd.part"
    others = (".a.part", "a.csv", f".a.csv.{node}-{dead}-00000000.part.txt")
    for name in (living, elsewhere, mine, old, left, *others):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / old, (0, time.time() - 2 * leftovers.DAY))
    runs.prepare(tmp_path)
    assert names(tmp_path) == sorted((living, elsewhere, mine, *others))


def test_the_name_of_a_part_tells_whose_it_is_and_is_no_longer_than_a_name_may_be(tmp_path: Path) -> None:
    parts = [leftovers.part(tmp_path / name) for name in ("a.csv", "a.csv", "β" * 120 + ".csv")]
    for part in parts:
        assert (found := leftovers.PART.search(part.name)) and found.groups() == (leftovers.NODE, str(os.getpid()))
        assert len(part.name.encode()) < 255
    assert parts[0] != parts[1]


def test_a_second_process_is_told_who_writes_and_files_of_one_folder_are_claimed_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    told = rf"{tmp_path} is being written by process {os.getpid()} since \d{{4}}-\d\d-\d\d .*: give another folder"
    with runs.claim(tmp_path):
        for _ in range(2):  # who asks does not make it free
            with pytest.raises(BadInput, match=told), runs.claim(tmp_path):
                pass
        a, b = runs.claim(tmp_path, "a.csv"), runs.claim(tmp_path, "b.csv")
        with a, b, pytest.raises(BadInput, match=r"a\.csv is being written"), runs.claim(tmp_path, "a.csv"):
            pass
    assert names(tmp_path) == []
    with runs.claim(tmp_path) as out:
        assert out == tmp_path


def test_who_waits_for_a_process_that_ends_gets_the_folder(tmp_path: Path) -> None:
    code = "import time\nfrom pplleak import runs\nwith runs.claim('.'): open('begun', 'w').close(); time.sleep(0.6)\n"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    with runs.claim(tmp_path):
        assert ".lock" in names(tmp_path)
    assert process.wait() == 0 and names(tmp_path) == ["begun"]


def test_the_lock_of_a_process_that_was_killed_keeps_nobody_out(tmp_path: Path) -> None:
    code = "import time\nfrom pplleak import runs\nwith runs.claim('.'): open('begun', 'w').close(); time.sleep(60)\n"
    killed_while(code, tmp_path, (tmp_path / "begun").exists)
    assert (tmp_path / ".lock").read_text().startswith("process ")
    with runs.claim(tmp_path):
        pass
    assert names(tmp_path) == ["begun"]


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with runs.claim(tmp_path), runs.claim(tmp_path):
        pass


def test_whoever_interrupts_is_told_what_is_kept(tmp_path: Path) -> None:
    def interrupted(*wrote: str, said: str = "", **more: object) -> str:
        with pytest.raises(KeyboardInterrupt) as stop, runs.claim(tmp_path, **more):  # type: ignore[arg-type]
            for name in wrote:
                runs.text(tmp_path / name, "")
            raise KeyboardInterrupt(*[said] * bool(said))
        return str(stop.value)

    assert interrupted() == "" and interrupted("run.json") == ""  # settings are nothing that was finished
    assert interrupted("rows.csv") == f"interrupted: what was finished is kept in {tmp_path}/, the same command goes on"
    assert interrupted(said="as it is") == "as it is"
    assert interrupted(kept=lambda out: "") == "" and interrupted(kept=lambda out: out.name) == tmp_path.name


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "another folder"),
        (errno.EACCES, "another folder"),
    ],
)
def test_what_cannot_be_written_says_how_to_mend_it(
    number: int, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(BadInput, match=rf"cannot write .*a\.txt: {os.strerror(number)}; .*{mend}.*, what was finished"):
        runs.text(tmp_path / "a.txt", "a")
    assert names(tmp_path) == [] and (number in files.FULL) is (mend == "make room")
    hdf5 = OSError(
        f"Can't write data (file write failed: time = Wed, errno = {number}, error message = '…', buf = 0x0)"
    )
    assert files.refused(hdf5) == files.refused(OSError(number, os.strerror(number)))
