"""Moves of all real numbers of a batch at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import misfit
from tables import shared, without_gaps

from pplleak.density import cell_fits, cell_moves, cell_starts
from pplleak.density.cell_moves import Sweep
from pplleak.density.cell_numbers import Numbers
from pplleak.density.cells import Residual, likelihood
from pplleak.inference import gibbs


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_gaps(tmp_path_factory.mktemp("table") / "t.csv")


def opened(file: Path, sigma: float, chains: int, **network: Any) -> tuple[Any, Sweep, Any]:
    """Observed records, a sweep, and chains that all hold the truth."""
    observed, model = shared(file, 2, sigma, widths=(12,), **network)
    density, records = gibbs.opened(model, observed.client, observed)
    fit = likelihood(density, cell_starts.drawn(records, 1, 2))
    assert isinstance(fit, Residual)
    sweep = Sweep(records, fit, 16, 0)
    one = cell_starts.nearest(records, observed.truth.double())
    return observed, sweep, sweep.begun(one.picked(torch.zeros(chains, dtype=torch.long)), 1.0)


def moments(sweep: Sweep, numbers: Numbers, state: Any, visits: int = 120) -> np.ndarray:
    """Both scores, their squares and their product, (chains, visits, 5), of moves of the numbers alone."""
    kept = []
    for _ in range(visits):
        state = sweep._all_numbers(numbers, state)
        a, b = state.batch.scores[..., 0].unbind(1)
        kept.append(torch.stack([a, b, a * a, b * b, a * b], 1))
    return torch.stack(kept, 1).numpy()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_two_records_numbers_have_the_moments_of_a_grid(
    file: Path, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given their codes, by quadrature; kinks and a prior that is no standard normal included. One twin takes a number
    for its score, without the slope between them, one takes what it drew without asking the density."""
    _, sweep, state = opened(file, 0.3, 64, activation=activation)
    fit = sweep.fit
    assert isinstance(fit, Residual)
    numbers = Numbers.about(fit, sweep.records, state.batch)
    assert numbers is not None
    line = torch.linspace(-5, 5, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)[..., None]
    codes = state.batch.codes[:1].expand(len(grid), -1, -1)
    x = sweep.records.decode(codes, grid).flatten(2)
    height = sweep.begun(cell_moves.Batch(codes, grid, x), 1.0).height
    weights, a, b = height.softmax(0), grid[:, 0, 0], grid[:, 1, 0]
    expected = weights @ torch.stack([a, b, a * a, b * b, a * b], 1)
    assert misfit(moments(sweep, numbers, state)[:, 20:], expected.numpy(), floor=80) < 5
    law = sweep.records
    flat = SimpleNamespace(scores=law.scores, decode=law.decode, slopes=torch.ones_like)
    assert misfit(moments(sweep, replace(numbers, records=flat), state)[:, 20:], expected.numpy(), floor=80) > 5
    monkeypatch.setattr(cell_moves, "refused", lambda logits: torch.zeros_like(logits, dtype=torch.bool))
    assert misfit(moments(sweep, numbers, state)[:, 20:], expected.numpy(), floor=80) > 5


@torch.no_grad()
def test_what_numbers_are_drawn_by_is_the_posterior_where_it_is_narrow(file: Path) -> None:
    """All draws are then taken; the twin, about J of another sign, has none of them taken."""
    _, sweep, state = opened(file, 1e-5, 64, activation="gelu")
    fit = sweep.fit
    assert isinstance(fit, Residual)
    numbers = Numbers.about(fit, sweep.records, state.batch)
    assert numbers is not None

    def taken(numbers: Numbers) -> float:
        new = sweep._all_numbers(replace(numbers, steps=(0.0,)), state)
        return float((new.batch.scores != state.batch.scores).any(-1).any(-1).double().mean())

    assert taken(numbers) > 0.9
    numbers.slopes.neg_()
    assert taken(numbers) < 0.1


def test_a_chain_of_narrow_records_makes_these_moves_in_every_sweep(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one whose secants are no good does not."""
    observed, model = shared(file, 2, 1e-4, widths=(12,))
    few: dict[str, Any] = {"draws": 5, "chains": 4, "starts": 2, "steps": 20, "particles": 8, "settle": 1, "moves": 1}
    moved, move = [], Sweep._all_numbers
    monkeypatch.setattr(Sweep, "_all_numbers", lambda *all_of: (moved.append(1), move(*all_of))[1])
    for sure, expected in ((-1.0, 5), (2.0, 0)):
        monkeypatch.setattr(cell_fits, "SURE", sure)
        monkeypatch.setattr(cell_fits.Learning, "good", False)
        moved.clear()
        gibbs.run(model, observed, observed.client, **few)
        assert len(moved) == expected


@torch.no_grad()
def test_where_there_are_no_numbers_of_several_records_none_are_moved(file: Path) -> None:
    observed, model = shared(file, 2, 0.1, drop=("price",))
    density, records = gibbs.opened(model, observed.client, observed)
    batch = cell_starts.drawn(records, 2, 2)
    fit = likelihood(density, batch)
    assert isinstance(fit, Residual) and Numbers.about(fit, records, batch) is None
