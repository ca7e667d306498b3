"""The command `pplleak calibrate`: what it writes, that it goes on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import one_line, run

from pplleak.cli import calibrate as calibration_command
from pplleak.studies.calibration import draws as calibration_draws
from pplleak.studies.calibration.draws import Draw

TINY = ["calibrate", "--inference", "laplace", "--network.widths", "4", "--inference.starts", "1",
        "--inference.steps", "3", "--inference.chains", "2", "--inference.draws", "60"]  # fmt: skip


def same(a: Path, b: Path) -> bool:
    one, two = Draw.load(a), Draw.load(b)
    return np.array_equal(one.ranks, two.ranks) and one.realised == two.realised


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_and_comes_to_the_same_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stops(label: str, total: int) -> Iterator[int]:
        yield from range(2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibration_command, "bar", stops)
        assert run([*TINY, "--draws", "4", "--out", str(tmp_path / "a")]) == 130
    assert "2 of 4 draws kept, the same command goes on" in capsys.readouterr().out
    made: list[int] = []
    real = calibration_draws.make
    monkeypatch.setattr(calibration_draws, "make", lambda b, m, i, k, **s: made.append(k) or real(b, m, i, k, **s))
    assert run([*TINY, "--draws", "4", "--out", str(tmp_path / "a")]) == 0
    assert made == [2, 3]
    assert "verdict" in capsys.readouterr().out
    said = json.loads((tmp_path / "a" / "calibration.json").read_text())
    assert said["draws"] == 4 and len(said["coverage"]) == 4 and said["settings"]["inference"] == "laplace"
    assert (tmp_path / "a" / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert run([*TINY, "--draws", "3", "--out", str(tmp_path / "b")]) == 0
    for k in range(3):
        name = f"draws/{k:05d}.npz"
        assert same(tmp_path / "a" / name, tmp_path / "b" / name)
    assert not same(tmp_path / "a/draws/00000.npz", tmp_path / "a/draws/00001.npz")
    capsys.readouterr()
    one_line(
        [*TINY, "--sigma", "0.3", "--out", str(tmp_path / "a")], capsys, "a run with sigma = None, this one has 0.3"
    )
    (tmp_path / "b/draws/00001.npz").write_bytes(b"half a file")
    one_line([*TINY, "--draws", "3", "--out", str(tmp_path / "b")], capsys, "is not a draw of `pplleak calibrate`")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--draws", "0"], "--draws must be at least 3, not 0"),
        (["--workers", "0"], "workers must be a positive number"),
        (["--labels", "recovered"], "takes labels as known or unknown"),
        (["--prior", "tv"], "cannot be drawn from"),
        (["--adversary.sigma", "-1"], "sigma must be a positive number"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_line([*TINY, *words, "--out", str(tmp_path)], capsys, said)
