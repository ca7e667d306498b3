"""What is written is whole or not there, and rows are read back as they were."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from command_line import killed_while
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from safetensors import safe_open

from pplleak import runs
from pplleak.errors import BadInput

# -- files -----------------------------------------------------------------------------------------------------------


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_writer_that_fails_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    runs.text(tmp_path / "a.txt", "old")

    def half(part: Path) -> None:
        part.write_text("ne")
        raise RuntimeError("in the middle")

    for path in (tmp_path / "a.txt", tmp_path / "b.txt"):
        with pytest.raises(RuntimeError, match="in the middle"):
            runs.write(path, half)
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_one_line_and_loses_nothing_that_was_finished(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = runs.Rows(tmp_path / "rows.csv", {"k": int, "v": float}, ("k",))
    table.add([{"k": 1, "v": 0.1}])
    monkeypatch.setattr(os, step, full)
    with pytest.raises(BadInput, match=r"cannot write .*rows\.csv: No space left on device; make room"):
        table.add([{"k": 2, "v": 0.2}])
    with pytest.raises(BadInput, match=r"cannot write .*new\.json: No space left on device; make room"):
        runs.json(tmp_path / "new.json", {})
    monkeypatch.undo()
    assert names(tmp_path) == ["rows.csv"] and table.read() == [{"k": 1, "v": 0.1}]


def test_a_kill_in_the_middle_of_writing_leaves_the_old_file(tmp_path: Path) -> None:
    runs.text(tmp_path / "a.txt", "old")
    code = (
        "import time\nfrom pplleak import runs\n"
        "def slow(part):\n"
        "    part.write_text('ne'); open('begun', 'w').close(); time.sleep(60)\n"
        "runs.write('a.txt', slow)\n"
    )
    killed_while(code, tmp_path, (tmp_path / "begun").exists)
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_table_that_is_killed_while_it_grows_is_whole_and_goes_on(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom pplleak import runs\n"
        "table = runs.Rows(Path('rows.csv'), {'k': int, 'v': str}, ('k',))\n"
        "for k in range(10**6): table.add([{'k': k, 'v': 'x' * 5000}])\n"
    )
    table = runs.Rows(tmp_path / "rows.csv", {"k": int, "v": str}, ("k",))
    killed_while(code, tmp_path, lambda: len(table.read()) > 20)
    kept = table.read()
    assert kept == [{"k": k, "v": "x" * 5000} for k in range(len(kept))]
    assert len(table.add([{"k": len(kept), "v": ""}])) == len(kept) + 1


@pytest.mark.slow
def test_two_processes_in_one_folder_keep_each_other_s_rows(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom pplleak import runs\n"
        "table = runs.Rows(Path('rows.csv'), {'who': str, 'k': int}, ('who', 'k'))\n"
        "for k in range(40): table.add([{'who': sys.argv[1], 'k': k}]); runs.text('same.txt', sys.argv[1] * 9999)\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, who], cwd=tmp_path) for who in "ab"]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    rows = runs.Rows(tmp_path / "rows.csv", {"who": str, "k": int}, ("who", "k")).read()
    assert sorted((r["who"], r["k"]) for r in rows) == [(who, k) for who in "ab" for k in range(40)]
    assert (tmp_path / "same.txt").read_text() in ("a" * 9999, "b" * 9999)
    assert names(tmp_path) == ["rows.csv", "same.txt"]


@pytest.mark.slow
def test_json_says_null_for_what_is_no_number_and_figures_take_their_format_from_their_name(tmp_path: Path) -> None:
    runs.json(
        tmp_path / "a.json", {"a": [math.nan, 1.5], "b": {"c": -math.inf}, "d": Path("x"), "e": np.float64("inf")}
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 1.5], "b": {"c": None}, "d": "x", "e": None}
    for name, magic in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")):
        runs.figure(tmp_path / name, Figure(), dpi=20)
        assert (tmp_path / name).read_bytes().startswith(magic)


def test_a_link_is_written_through_and_a_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real.txt")
    runs.text(tmp_path / "link", "new")
    (tmp_path / "usual.txt").write_text("")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "real.txt").stat().st_mode == (tmp_path / "usual.txt").stat().st_mode


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(tmp_path: Path) -> None:
    assert runs.prepare(tmp_path / "a" / "b") == tmp_path / "a" / "b" and not names(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    for out, told in ((tmp_path / "file" / "x", "another folder"), ("", "empty name")):
        with pytest.raises(BadInput, match=told):
            runs.prepare(out)
    for write in (runs.text, runs.json):
        with pytest.raises(BadInput, match=r"cannot write .*file/x/y: "):
            write(tmp_path / "file" / "x" / "y", "")
    with pytest.raises(BadInput, match=r"cannot write to .*file/x"):
        runs.settle(tmp_path / "file" / "x" / "run.json", {})


# -- rows ------------------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8"))
VALUES = {
    "key": st.integers(),
    "word": WORDS,
    "count": st.none() | st.integers(),
    "number": st.floats(),
    "maybe": st.none() | st.floats(allow_nan=False),
    "good": st.booleans(),
    "name": st.none() | WORDS.filter(bool),
}
KINDS = {"key": int, "word": str, "count": int | None, "number": float, "maybe": float | None, "good": bool,
         "name": str | None}  # fmt: skip


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.lists(st.fixed_dictionaries(VALUES), max_size=5, unique_by=lambda row: row["key"]), st.data())
def test_rows_are_read_back_as_they_were(rows: list[dict[str, Any]], data: Any) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    rows = [{name: row[name] for name in KINDS} for row in rows]
    with mock.patch.object(os, "fsync"), tempfile.TemporaryDirectory() as folder:
        table = runs.Rows(Path(folder) / "rows.csv", KINDS, ("key",))
        table.add(rows[:cut])
        added = table.add(rows[cut:])
        assert repr(added) == repr(rows) == repr(table.read())  # NaN is equal to itself here, and −0 is not 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers()), max_size=12))
def test_rows_about_the_same_are_replaced_together(batches: list[tuple[int, int]]) -> None:
    with mock.patch.object(os, "fsync"), tempfile.TemporaryDirectory() as folder:
        table = runs.Rows(Path(folder) / "rows.csv", {"k": int, "part": int, "v": int}, ("k",))
        last: dict[int, int] = {}
        for k, v in batches:
            table.add([{"k": k, "part": part, "v": v} for part in range(2)])
            last.pop(k, None)
            last[k] = v
        assert table.read() == [{"k": k, "part": p, "v": v} for k, v in last.items() for p in range(2)]


def test_rows_are_taken_out_by_their_keys(tmp_path: Path) -> None:
    table = runs.Rows(tmp_path / "rows.csv", {"k": int, "v": int}, ("k",))
    table.add([{"k": k, "v": 2 * k} for k in range(4)])
    assert table.remove([(1,), (3,), (9,)]) == table.read() == [{"k": 0, "v": 0}, {"k": 2, "v": 4}]


def test_numbers_of_numpy_and_torch_are_those_of_python(tmp_path: Path) -> None:
    table = runs.Rows(tmp_path / "rows.csv", {"k": int, "v": float, "ok": bool}, ("k",))
    value = np.float32(0.1)
    rows = table.add([{"k": np.int64(3), "v": value, "ok": np.bool_(True)}, {"k": 4, "v": torch.tensor(0.1), "ok": 0}])
    assert rows == table.read() == [{"k": 3, "v": float(value), "ok": True}, {"k": 4, "v": float(value), "ok": False}]
    assert float(value) != 0.1 and type(rows[0]["k"]) is int


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "other columns"), ("k\n1\n", "other columns"), ("v,k\n1,2\n", "other columns"), 
        ("k,v\n1\n", "row 1 is not"),
        ("k,v\n1,2,3\n", "row 1 is not"), ("k,v\none,2\n", "one"), ("k,v\n1,\n", "could not convert"),
        ('k,v\n1,"2\n', "unexpected end"), ("k,v\n\n", "row 1 is not"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_refused_in_a_line_and_left_alone(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    table = runs.Rows(path, {"k": int, "v": float}, ("k",))
    for go_on in (table.read, lambda: table.add([{"k": 1, "v": 2.0}])):
        with pytest.raises(BadInput, match=rf"cannot go on from .*rows\.csv: .*{told}.*; give another folder$"):
            go_on()
    assert path.read_text() == text
    path.write_bytes(b"\xff\xfe,v\n")
    with pytest.raises(BadInput, match="cannot go on"):
        table.read()


def test_a_row_with_a_column_that_the_table_has_not_is_no_row(tmp_path: Path) -> None:
    table = runs.Rows(tmp_path / "rows.csv", ("k", "v"), ("k",))
    with pytest.raises(KeyError, match="no column w"):
        table.add([{"k": 1, "w": 2}])
    assert table.add([{"k": 1}]) == [{"k": "1", "v": ""}]  # columns without a kind hold words
    assert runs.read(tmp_path / "rows.csv") == [{"k": "1", "v": ""}] and runs.read(tmp_path / "none.csv") == []


def test_the_room_opens_no_torch() -> None:
    code = "import sys, pplleak.runs; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]


def test_a_file_of_tensors_is_the_same_byte_for_byte_whenever_it_holds_the_same(tmp_path: Path) -> None:
    named = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor([1, 2])}
    metadata = {name: f'{name} "σ"\n\u2028' for name in "hgfedcba"}
    for k in range(8):  # safetensors itself draws the order of eight names anew each time
        runs.tensors(tmp_path / f"{k}.safetensors", named, dict(reversed(metadata.items())))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as f:
        assert f.metadata() == metadata and all(torch.equal(f.get_tensor(n), t) for n, t in named.items())
