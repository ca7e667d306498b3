"""`benchmarks/tables.py`: what a piece of the work that ends early has done, and the page that is made of its rows."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import benchmark
from tables import shared, written

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables() -> Any:
    return benchmark("tables")


def test_all_sizes_are_equally_far_at_any_time(tables: Any) -> None:
    sizes, counts = (1, 8, 32), (30, 10, 5)
    made = tables.in_step(sizes, counts)
    assert sorted(made) == sorted((k, size) for size, count in zip(sizes, counts, strict=True) for k in range(count))
    for end in range(1, len(made) + 1):
        shares = [sum(s == size for _, s in made[:end]) / count for size, count in zip(sizes, counts, strict=True)]
        assert max(shares) - min(shares) <= max(1 / count for count in counts) + 1e-9


def test_no_job_is_begun_after_the_end(tables: Any) -> None:
    assert list(tables.in_time([1, 2, 3], time.monotonic() + 100)) == [1, 2, 3]
    jobs = tables.in_time([1, 2], time.monotonic() + 0.05)
    assert next(jobs) == 1
    time.sleep(0.1)
    assert list(jobs) == []


def test_strangers_are_matched_with_the_records_and_are_right_in_chance_alone(tables: Any, tmp_path: Path) -> None:
    """Rows that are the private ones, in any order, are right in all cells."""
    observed, _ = shared(written(tmp_path / "t.csv"), batch=6)
    assert tables.strangers(replace(observed, public=observed.truth.flip(0)), 0).all()
    many, one = (tables.strangers(replace(observed, truth=observed.truth[:n]), 0).mean() for n in (6, 1))
    assert 0 < one < many < 1
    assert not torch.equal(observed.public[:6], observed.truth)


def test_the_page_pairs_by_batch_and_says_what_is_missing(tables: Any) -> None:
    def row(attack: str, index: int, share: float, whole: float = 0.0, sigma: float = 0.1) -> dict[str, Any]:
        own = attack == "posterior"
        return {"data": "t", "batch": 8, "sigma": sigma, "attack": attack, "index": index, "cell_accuracy": share,
                "exact_match": whole, "claims": "0.9 0.9" * own, "right": "11", "drawn": "11 01" * own,
                "rhat": 1.0 if own else None, "seconds": 3.0}  # fmt: skip

    rows = [row("posterior", 0, 0.8, 0.5), row("posterior", 1, 0.6), row("tableak", 1, 0.5), row("tableak", 0, 0.3),
            row("guess", 0, 0.4, sigma=1e-6), row("map", 2, 0.1)]  # fmt: skip
    clean, noisy, *_ = (line for line in tables.page(rows).splitlines() if line.startswith("| t"))
    assert clean == "| t, 8, σ 1e-6 | 1 | 40.0; 0 | – | – | – | – |"
    assert noisy == "| t, 8, σ 0.1 | 1 to 2 | – | – | 40.0 ± 10.0; 0 | 10.0; 0 | 70.0 ± 10.0; 25 |"
    gains = tables.page(rows).splitlines()[-1]
    assert gains.startswith("| t, 8, σ 0.1 | +30.0 ± 20.0 | – | – | 0.100 (") and gains.endswith(" | 100% | 3 |")


def test_the_page_that_is_kept_is_that_of_the_rows_that_are_kept(tables: Any) -> None:
    results = ROOT / "benchmarks" / "results"
    batches = tables.runs.Rows(results / "tables_batches.csv", tables.EACH, ("index",)).read()
    assert (results / "tables.md").read_text() == tables.page(batches)
