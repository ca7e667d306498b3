"""`benchmarks/tables.py`: a piece of the work that ends early has done about the same share of every size."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import benchmark
from tables import shared, written


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
