"""Folders that are lists: read without running, opened by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pplleak import folders
from pplleak.errors import BadInput


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of three files, of which one cannot run and one is what the others share."""
    made = tmp_path / "some_folder"
    made.mkdir()
    (made / "__init__.py").write_text("")
    (made / "_shared.py").write_text('"""What they share."""\n\ndef entry(): ...\n')
    (made / "apple.py").write_text('"""A fruit.\n\nMore of it.\n"""\n\ndef entry(): return 1\n\nSEEDS: int = 5\n')
    (made / "broken.py").write_text('"""Cannot run."""\n\nclass Broken: ...\n\nraise RuntimeError\n')
    monkeypatch.syspath_prepend(tmp_path)
    return "some_folder"


def test_a_folder_is_listed_without_running_its_files(package: str, tmp_path: Path) -> None:
    assert folders.names(tmp_path / package) == {"apple": "A fruit.", "broken": "Cannot run."}


def test_only_files_with_the_entry_are_listed(package: str, tmp_path: Path) -> None:
    assert list(folders.names(tmp_path / package, "entry")) == ["apple"]
    assert list(folders.names(tmp_path / package, "Broken")) == ["broken"]
    assert folders.names(tmp_path / package, "absent") == {}


def test_a_definition_is_looked_for_in_the_files(package: str, tmp_path: Path) -> None:
    assert folders.where(tmp_path / package, "Broken") == "broken"
    assert folders.where(tmp_path / package, "SEEDS") == "apple"
    assert folders.where(tmp_path / package, "absent") is None


def test_a_file_is_opened_by_its_name_and_others_are_refused_with_the_near_ones(package: str) -> None:
    assert folders.load(package, "fruit", "apple", "entry").entry() == 1
    for name in ("aple", "_shared", "apple.entry", "../apple", ""):
        with pytest.raises(BadInput, match=f"unknown fruit '{name}'"):
            folders.load(package, "fruit", name)
    with pytest.raises(BadInput, match="did you mean apple"):
        folders.load(package, "fruit", "aple")
    with pytest.raises(BadInput, match="unknown fruit 'broken'"):
        folders.load(package, "fruit", "broken", "entry")


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys, pathlib, pplleak; from pplleak import folders\n"
        "root = pathlib.Path(pplleak.__file__).parent\n"
        "for room in ('channels', 'priors', 'data', 'client/networks'): assert folders.names(root / room), room\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
