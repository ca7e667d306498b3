"""What is imported, and when: read off `sys.modules` in another process, never off a clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pplleak

HEAVY = {"torch", "numpy", "pyro", "matplotlib", "scipy", "arviz", "sklearn", "torchvision"}
LIGHT = [
    ["--help"],
    ["ls"],
    ["ls", "--form", "markdown"],
    ["nothing"],
    ["attack", "--help"],
    ["attack", "--wrong", "3"],
    ["attack", "--model", "dlg", "--inference", "map", "--wrong"],
    ["attack", "--sigma", "much"],
    ["attack", "--model", "dgl"],
    ["attack", "--network.wrong", "3"],
    ["observe", "--help"],
    ["compare", "--help"],
    ["risk", "--help"],
    ["bits", "--help"],
    ["calibrate", "--help"],
    ["train", "--channel", "topk", "--help"],
    ["defend", "--help"],
    ["prior", "fit", "vae", "--help"],
    ["cp", "--help"],
]


def after(code: str, cwd: Path) -> set[str]:
    """The packages that are imported once the code has run."""
    code = f"{code}\nimport sys, json\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*argv: str) -> str:
    return f"from pplleak import cli\ntry:\n    cli.main({list(argv)})\nexcept SystemExit:\n    pass"


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    assert not after("import pplleak", tmp_path) & HEAVY


def test_every_name_of_the_face_is_there() -> None:
    assert len(set(pplleak.__all__)) == len(pplleak.__all__)
    for name in pplleak.__all__:
        assert getattr(pplleak, name) is not None and name in dir(pplleak)
    with pytest.raises(AttributeError, match="nothing"):
        pplleak.nothing  # noqa: B018


@pytest.mark.slow
def test_help_ls_and_wrong_words_need_nothing_heavy(tmp_path: Path) -> None:
    """One process for all of them: what one imports, the next would not hide."""
    code = "\n".join(
        [f"{command(*argv)}\nassert not {HEAVY} & set(__import__('sys').modules), {argv}" for argv in LIGHT]
    )
    assert not after(code, tmp_path) & HEAVY


def test_a_users_file_is_not_run_for_a_help_text(tmp_path: Path) -> None:
    source = "open('ran', 'w')\ndef model(client, batch_size=1, *, mine: float = 0.25): ...\n"
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "net.py").write_text("open('ran', 'w')\ndef build(input_shape, num_classes, *, width: int = 3): ...\n")
    argv = ["attack", "--model", "mine.py", "--network", "net.py:build", "--help"]
    done = subprocess.run(
        [sys.executable, "-m", "pplleak", *argv], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert "--model.mine" in done.stdout and "--network.width" in done.stdout
    assert not (tmp_path / "ran").exists()
