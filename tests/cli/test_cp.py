"""`pplleak cp`: a copy is the file itself, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from pplleak import programs
from pplleak.cli.cp import copy
from pplleak.errors import BadInput


def test_a_copy_is_the_file_itself_under_its_own_or_another_name(tmp_path: Path) -> None:
    original = (programs.folder("models") / "dlg.py").read_bytes()
    into_folder = copy("dlg", tmp_path)
    renamed = copy("dlg", tmp_path / "new" / "mine.py")
    assert (into_folder, renamed) == (tmp_path / "dlg.py", tmp_path / "new" / "mine.py")
    assert into_folder.read_bytes() == renamed.read_bytes() == original


def test_a_copy_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("precious")
    with pytest.raises(BadInput, match="exists already"):
        copy("dlg", tmp_path / "mine.py")
    assert (tmp_path / "mine.py").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "destination", "said"),
    [
        ("dgl", "mine.py", "did you mean dlg"),
        ("dlg", "mine.txt", r"must end in \.py"),
        ("dlg", "file/mine.py", "cannot write"),
    ],
)
def test_a_copy_that_cannot_be_made_is_refused(name: str, destination: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=said) as error:
        copy(name, tmp_path / destination)
    assert "\n" not in str(error.value)
