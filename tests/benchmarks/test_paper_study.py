"""What the paper's experiments share: jobs kept row by row, settings that are not mixed, statistics of rows."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import PAPER, rows

from pplleak.errors import BadInput


def fails_at(number: int) -> Callable[[Any], list[dict[str, Any]]]:
    def work(job: Any) -> list[dict[str, Any]]:
        if job[0] == number:
            raise KeyboardInterrupt
        return [{"psnr": 1.5}]

    return work


def test_a_run_that_is_interrupted_keeps_its_rows_and_is_taken_up(
    paper: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    study, path = paper("study"), tmp_path / "rows.csv"
    jobs = [(k,) for k in range(4)]
    assert not study.run("", jobs, fails_at(2), path, ("index", "psnr"), ("index",))
    assert [r["index"] for r in rows(path)] == ["0", "1"]
    assert study.run("", jobs, fails_at(-1), path, ("index", "psnr"), ("index",))
    assert [r["index"] for r in rows(path)] == ["0", "1", "2", "3"]


def test_stale_rows_are_made_anew_and_stay_until_then(paper: Callable[[str], ModuleType], tmp_path: Path) -> None:
    study, path = paper("study"), tmp_path / "rows.csv"
    about = (path, ("index", "psnr"), ("index",))
    assert study.run("", [(k,) for k in range(3)], lambda job: [{"psnr": float(job[0])}], *about)

    def again(work: Callable[[Any], list[dict[str, Any]]]) -> bool:
        return bool(study.run("", [(k,) for k in range(3)], work, *about, stale=lambda r: float(r["psnr"]) == 1))

    assert not again(fails_at(1))
    assert [float(r["psnr"]) for r in rows(path)] == [0, 1, 2]
    assert again(fails_at(-1))
    assert sorted((r["index"], float(r["psnr"])) for r in rows(path)) == [("0", 0), ("1", 1.5), ("2", 2)]


def test_a_fresh_row_of_a_job_does_not_hide_its_stale_one(paper: Callable[[str], ModuleType], tmp_path: Path) -> None:
    study, asked = paper("study"), []

    def both(job: Any) -> list[dict[str, Any]]:
        asked.append(job)
        return [{"part": part, "psnr": 1.0} for part in "ab"]

    for stale in ("", "a", ""):
        study.run("", [(0,)], both, tmp_path / "rows.csv", ("index", "part", "psnr"), ("index",),
                  stale=lambda row, part=stale: row["part"] == part)  # fmt: skip
    assert asked == [(0,)] * 2 and [r["part"] for r in rows(tmp_path / "rows.csv")] == ["a", "b"]


@pytest.mark.parametrize(("whole", "code"), [(True, None), (False, 130)])
def test_a_script_that_was_ended_early_says_so_by_its_exit_code(
    whole: bool, code: int | None, paper: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["script"])
    with contextlib.nullcontext() if code is None else pytest.raises(SystemExit) as ended:
        paper("study").command(lambda settings: whole, paper("training_time").Settings, None)
    assert code is None or ended.value.code == code


def test_rows_of_other_settings_are_not_added_to_those_that_are_there(
    paper: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    study, script = paper("study"), paper("stronger_priors")
    args = script.Settings(out=tmp_path)
    for _ in range(2):
        study.settle(args, ("tuning", "effort"), space=script.SPACE)
    study.settle(dataclasses.replace(args, images=99), ("tuning", "effort"), space=script.SPACE)
    with pytest.raises(BadInput, match="a run with tuning = 3, this one has 2"):
        study.settle(dataclasses.replace(args, tuning=2), ("tuning", "effort"), space=script.SPACE)
    path = tmp_path / "rows.csv"
    assert study.run("", [(1,)], double, path, ("index", "psnr"), ("index",))
    with pytest.raises(BadInput, match="other columns"):
        study.run("", [(2,)], double, path, ("psnr", "index"), ("index",))
    assert rows(path) == [{"index": "1", "psnr": "2.0000"}]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--data-root", "/nowhere"], "/nowhere"), (["--defences", "fog"], "fog"), (["--workers", "0"], "at least 1")],
)
def test_a_script_says_bad_input_in_a_line(
    words: list[str],
    said: str,
    paper: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = paper("noise_defences")
    argv = ["noise_defences.py", "--out", str(tmp_path), "--steps", "0"]
    if "/nowhere" not in words:
        argv += ["--datasets", "digits"]
    monkeypatch.setattr(sys, "argv", [*argv, *words])
    with pytest.raises(SystemExit) as stopped:
        paper("study").command(script.main, script.Settings, script.__doc__)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.process
def test_a_script_is_run_by_its_path(tmp_path: Path) -> None:
    argv = [sys.executable, str(PAPER / "noise_defences.py"), "--out", str(tmp_path), "--steps", "0"]
    done = subprocess.run([*argv, "--datasets", "digits", "--defences", "fog"], capture_output=True, text=True)
    assert done.returncode == 2 and "fog" in done.stderr and "Traceback" not in done.stderr


def double(job: Any) -> list[dict[str, Any]]:
    return [{"psnr": 2.0 * job[0]}]


def test_workers_give_the_rows_of_one(
    paper: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for the processes, which tests/test_runs_executors.py starts."""
    study, asked = paper("study"), []
    monkeypatch.setattr(study.runs, "workers", lambda n: asked.append(n) or ThreadPoolExecutor(n))
    jobs = [(k,) for k in range(5)]
    for workers in (1, 2):
        study.run("", jobs, double, tmp_path / f"{workers}.csv", ("index", "psnr"), ("index",), workers)
    assert asked == [1, 2]
    one, two = (sorted(tuple(r.items()) for r in rows(tmp_path / f"{w}.csv")) for w in (1, 2))
    assert one == two and [dict(r)["psnr"] for r in one] == ["0.0000", "2.0000", "4.0000", "6.0000", "8.0000"]


def test_paired_differences_and_the_best_trial(paper: Callable[[str], ModuleType]) -> None:
    study = paper("study")
    mean, se = study.paired({"1": 3.0, "2": 5.0, "9": 7.0}, {"1": 1.0, "2": 4.0, "3": 0.0})
    assert mean == pytest.approx(1.5) and se == pytest.approx(np.std([2, 1], ddof=1) / np.sqrt(2))
    tried = [
        {"attack": "l2", "trial": str(k), "psnr": str(p), "tv": str(k), "lr": "0.1", "delta": ""}
        for k, p in ((0, 5.0), (0, 5.0), (1, 9.0), (1, 0.5))
    ]
    assert study.best(tried, ("attack",)) == {("l2",): {"tv": 0.0, "lr": 0.1}}


def test_trials_fill_the_logarithm_of_their_ranges(paper: Callable[[str], ModuleType]) -> None:
    drawn = paper("study").trials({"tv": (1e-4, 1.0), "lr": (0.01, 0.1)}, 64)
    for name, low, high in (("tv", 1e-4, 1.0), ("lr", 0.01, 0.1)):
        values = np.log([t[name] for t in drawn])
        share = (values - np.log(low)) / (np.log(high) - np.log(low))
        assert share.min() >= 0 and share.max() <= 1
        assert np.allclose(np.histogram(share, 4, (0, 1))[0], 16, atol=2)
