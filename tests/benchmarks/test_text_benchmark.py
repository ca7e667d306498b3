"""`benchmarks/text.py`: rows are kept as they come, and what was cut short is said, dropped or run again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import texts
from conftest import benchmark

from pplleak import errors, runs
from pplleak.studies.audit.clock import OutOfTime

JOB = ("bert", 1, 1e-9, 0, "rows", 0)


@pytest.fixture(scope="module")
def text() -> Any:
    return benchmark("text")


def settings(text: Any, folder: Path, **more: Any) -> Any:
    return text.Settings(text=texts.written(folder / "notes.txt"), csv=folder / "rows.csv", **more)


def test_every_attack_is_planned_at_every_size_once(text: Any) -> None:
    jobs = list(text.plan())
    assert len(set(jobs)) == len(jobs)
    assert {(job[4], job[1]) for job in jobs} == {(name, size) for name in ("rows", *text.SET) for size in text.WIDTHS}


@pytest.mark.slow
def test_a_run_keeps_rows_and_goes_on(text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [JOB, ("gpt2", 1, 1e-9, 0, "tag", 0)]
    monkeypatch.setattr(text, "plan", lambda: iter(jobs))
    monkeypatch.setitem(text.SET, "tag", ("lamp", {**text.SET["tag"][1], "steps": 1}))
    args = settings(text, tmp_path)
    text.main(args)
    rows = runs.read(tmp_path / "rows_batches.csv")
    assert [(r["shape"], r["attack"]) for r in rows] == [("bert", "rows"), ("gpt2", "tag")]
    assert float(rows[0]["exact"]) == 1  # the gradient is clean
    monkeypatch.setattr(text, "measure", None)  # nothing is run again
    text.main(args)
    assert runs.read(tmp_path / "rows_batches.csv") == rows
    texts.written(tmp_path / "notes.txt", texts.sentences(seed=1))
    with pytest.raises(errors.BadInput, match="sentences"):
        text.main(args)


def test_what_was_cut_short_is_run_again_with_more_time_only(text: Any) -> None:
    row = {"why": f"{text.CUT} after 8 s, before it had anything"}
    assert text.again(row, 120)
    assert not text.again(row, 8)
    assert not text.again({"why": ""}, 120)


@pytest.mark.parametrize("left, limit, kept", [(-1.0, 5.0, False), (3.0, 5.0, False), (20.0, 5.0, True)])
def test_an_attack_that_the_end_of_all_cuts_is_dropped(
    text: Any, monkeypatch: pytest.MonkeyPatch, left: float, limit: float, kept: bool
) -> None:
    monkeypatch.setattr(text, "measure", lambda path, limit, *job: {"why": f"{text.CUT} after {limit:g} s"})
    row = text.within(Path(), limit, time.time() + left, JOB)
    assert row == ({"why": f"{text.CUT} after 5 s"} if kept else None)


def test_an_attack_that_does_not_look_at_its_clock_is_ended(
    text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(*_: Any, **__: Any) -> None:
        begun = time.monotonic()
        while time.monotonic() < begun + 10:
            pass

    monkeypatch.setattr(text, "attack", deaf)
    monkeypatch.setattr(text, "GRACE", 0.1)
    begun = time.monotonic()
    row = text.measure(texts.written(tmp_path / "notes.txt"), 0.1, "bert", 1, 1e-9, 0, "lamp", 0)
    assert time.monotonic() - begun < 9
    assert row["why"].startswith(text.CUT)
    assert row["exact"] == 0
    with pytest.raises(OutOfTime), text.alarm(0.01):
        deaf()
