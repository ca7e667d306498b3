"""`benchmarks/tables.py`: a piece of the work that ends early has done about the same share of every size."""

from __future__ import annotations

import time
from typing import Any

import pytest
from conftest import benchmark


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
