"""Elliptical slice sampling as an inference; its moves are tested in tests/density/test_ellipses.py, its posterior in
test_inference.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scenes import from_data

from pplleak.errors import BadInput
from pplleak.studies.attack.attack import attack

RUN: dict[str, Any] = {"chains": 8, "draws": 6, "warmup": 6, "thin": 2, "steps": 5, "processes": 1}


def test_superchains_are_copies_that_have_parted_and_are_judged_together() -> None:
    observed = from_data(settings={"activation": "relu"}, sigma=0.5)
    found, still = (
        attack(
            observed, "optimal", "elliptical", settings={**RUN, "thin": 1, "superchains": 2, "settle": settle}, seed=1
        )
        for settle in (20, 0)
    )
    assert found.x.shape[:2] == (8, 6) and found.attrs["superchains"] == 2

    def apart(x: np.ndarray) -> float:
        first = x[:, 0].reshape(2, 4, -1)
        return float((first - first[:, :1]).std() / x.std())

    assert apart(found.x) > 1.5 * apart(still.x)
    with pytest.raises(BadInput, match="8 chains cannot be cut into 3 superchains"):
        attack(observed, "optimal", "elliptical", settings={**RUN, "superchains": 3})


def test_the_draws_do_not_depend_on_whether_processes_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = from_data(settings={"activation": "relu"}, sigma=0.5)
    forked = attack(observed, "optimal", "elliptical", settings={**RUN, "processes": 2}, seed=1)
    monkeypatch.setattr("pplleak.runs.parallel._can_fork", lambda device: False)
    here = attack(observed, "optimal", "elliptical", settings={**RUN, "processes": 2}, seed=1)
    assert np.array_equal(forked.x, here.x)
