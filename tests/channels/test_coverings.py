"""In how many ways draws hit all of some entries: counted for few draws, by their asymptotics for many."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from pplleak.channels import _coverings as coverings


def test_few_draws_are_counted_as_they_are_listed() -> None:
    listed = Counter(len(set(draws)) for draws in itertools.product(range(5), repeat=5))
    ways = np.exp(coverings.log_coverings(5))
    assert ways[1:] == pytest.approx([listed[s] / math.comb(5, s) for s in range(1, 6)])
    assert ways[0] == 0


def test_many_draws_are_about_what_counting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    n, s = 800, np.array([0, 1, 2, 80, 200, 400, 506, 720, 798, 799, 800])
    counted = coverings.log_coverings(n)[s]
    coverings.log_coverings.cache_clear()
    monkeypatch.setattr(coverings, "COUNTED", 10)
    found = coverings.log_coverings(n)[s]
    coverings.log_coverings.cache_clear()
    assert found[0] == counted[0] == -np.inf and found[-1] == pytest.approx(counted[-1], rel=1e-12)
    assert np.abs(found[1:] - counted[1:]).max() < 1e-4
    assert np.isfinite(coverings.log_coverings(10**6)[[1, 10**5, 6 * 10**5, 10**6]]).all()
