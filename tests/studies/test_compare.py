"""The statistics of a comparison, on rows whose differences are known."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import one_line, run, tiny
from rich.console import Console

from pplleak.posterior import Posterior
from pplleak.studies.compare import compare

BLANK: dict[str, object] = dict.fromkeys(compare.COLUMNS)


def row(index: int, inference: str, **values: object) -> dict[str, object]:
    return {"index": index, "inference": inference, **BLANK, "converged": True, **values}


def hard_and_easy_images() -> list[dict[str, object]]:
    """hmc is 1 dB better on every image but one; the images themselves differ by much more."""
    rows = []
    for k, level in enumerate((10.0, 20.0, 30.0, 40.0)):
        gain = -0.5 if k == 3 else 1.0
        rows.append(row(k, "map", psnr_map=level, psnr_mean=level))
        rows.append(row(k, "hmc", psnr_map=level - 0.2, psnr_mean=level + gain, coverage_90=0.9, approximation="a β"))
    return rows


def test_paired_differences_leave_out_how_much_the_images_differ() -> None:
    rows = hard_and_easy_images()
    found = compare.paired(rows, ("hmc", "psnr_mean"), ("map", "psnr_mean"))
    gaps = np.array([1, 1, 1, -0.5])
    assert found == {"mean": pytest.approx(gaps.mean()), "se": pytest.approx(gaps.std(ddof=1) / 2), "wins": 3.0,
                     "count": 4}  # fmt: skip
    apart = [compare.average(rows, n, "psnr_mean") for n in ("hmc", "map")]
    assert found["se"] * 10 < min(a[1] for a in apart if a)


def test_only_images_that_both_have_are_paired_ties_count_a_half_and_one_image_has_no_error() -> None:
    rows = [
        row(0, "a", psnr_mean=1.0),
        row(0, "b", psnr_mean=1.0),
        row(1, "a", psnr_mean=9.0),
        row(2, "b", psnr_mean=0),
    ]
    assert compare.paired(rows, ("a", "psnr_mean"), ("b", "psnr_mean")) == {"mean": 0, "se": None, "wins": 0.5,
                                                                          "count": 1}  # fmt: skip
    assert compare.paired(rows, ("a", "psnr_mean"), ("c", "psnr_mean")) is None


def test_the_baseline_and_points_have_no_difference_from_themselves() -> None:
    found = compare.against(hard_and_easy_images(), ["map", "hmc"])
    assert found["map"] == {"baseline": None, "own_map": None}
    assert found["hmc"]["own_map"]["wins"] == 3 and found["hmc"]["baseline"]["count"] == 4


def test_the_tables_mark_what_is_approximate_and_nothing_else() -> None:
    rows, names = hard_and_easy_images(), ["map", "hmc"]
    for made in (compare.table(rows, names), compare.table(rows, names, True), compare.paired_table(rows, names)):
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(made)
        shown = [line for line in console.export_text().splitlines() if "│" in line]
        assert all("≈" in line for line in shown if "hmc" in line) and any("hmc" in line for line in shown)
        assert not any("≈" in line for line in shown if "map " in line)


def posterior(psnr: float, interrupted: bool) -> Posterior:
    truth = np.zeros((1, 1, 4, 4))
    draws = np.full((2, 8, 1, 1, 4, 4), 10 ** (-psnr / 20))
    reasons = ("interrupted after 8 draws",) if interrupted else ()
    return Posterior(draws, np.zeros((2, 8, 1)), draws[0, 0], "sampler", truth=truth, reasons=reasons)


def test_an_attack_that_ctrl_c_ended_is_not_compared_with_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [posterior(20.0, False), posterior(10.0, True)]
    monkeypatch.setattr(compare, "attack", lambda *a, **k: left.pop(0))
    kept = []
    targets = [(0, lambda: None), (1, lambda: None)]
    rows = compare.compare(targets, "optimal", ["hmc"], keep=lambda rows: kept.append(len(rows)))  # type: ignore[arg-type]
    assert [r["index"] for r in rows] == [0] and rows[0]["psnr_mean"] == pytest.approx(20.0) and kept == [1]
    left[:] = [posterior(10.0, True)]
    with pytest.raises(KeyboardInterrupt):
        compare.compare(targets[:1], "optimal", ["hmc"])  # type: ignore[arg-type]


@pytest.mark.slow
def test_compare_goes_on_where_it_was_left_and_overwrites_nothing_that_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["compare", "--inference", "map,laplace", *tiny("map", "map"), *tiny("laplace", "laplace")]
    argv += ["--out", str(tmp_path)]

    def lines() -> list[dict[str, str]]:
        return list(csv.DictReader((tmp_path / "compare.csv").open()))

    def stops(label: str, total: int) -> Iterator[int]:
        yield from range(3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pplleak.cli._where.bar", stops)
        assert run([*argv, "--count", "2"]) == 130
    assert "3 attacks kept, the same command goes on" in " ".join(capsys.readouterr().out.split())
    before = lines()
    assert [(r["index"], r["inference"]) for r in before] == [("0", "map"), ("0", "laplace"), ("1", "map")]
    attacked: list[tuple[int, str]] = []
    real = compare.attack

    def seen(target: Any, model: str, name: str, **settings: Any) -> Posterior:
        attacked.append((target.provenance["index"], name))
        return real(target, model, name, **settings)

    monkeypatch.setattr(compare, "attack", seen)
    assert run([*argv, "--count", "2"]) == 0
    assert attacked == [(1, "laplace")] and lines()[:3] == before and len(lines()) == 4
    whole = lines()
    assert run([*argv, "--count", "1"]) == 0  # a shorter run leaves the rows of a longer one
    assert lines() == whole and len(attacked) == 1
    capsys.readouterr()
    one_line([*argv, "--count", "2", "--sigma", "0.3"], capsys, "holds a run with sigma = None, this one has 0.3")
    (tmp_path / "run.json").write_text("{")
    one_line([*argv, "--count", "2"], capsys, "cannot go on from")
    (tmp_path / "run.json").unlink()
    one_line([*argv, "--count", "2"], capsys, "does not say what its rows were made with")
    assert lines() == whole
