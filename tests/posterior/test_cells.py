"""What is claimed of cells is what holds of them, also where the records of a batch have no order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tables import written

from pplleak.data import table
from pplleak.data.columns import Columns
from pplleak.posterior import Posterior, cells, diagnostics

BATCH, DRAWS, CASES = 3, 60, 300


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, Columns]:
    images = table.halves(written(tmp_path_factory.mktemp("table") / "houses.csv"))[1]
    assert images.columns is not None
    return images.x.double(), images.columns


def test_claims_of_batches_without_an_order_are_calibrated_and_in_the_order_of_the_mode_they_are_not(
    public: tuple[torch.Tensor, Columns],
) -> None:
    rows, columns = public
    pick = np.random.default_rng(0)
    gaps, of_the_mode = [], []
    for _ in range(CASES):  # a posterior of batches of public rows, and a truth that is one of them
        own = rows[pick.choice(len(rows), 12, replace=False)]
        x = own[torch.as_tensor(pick.integers(len(own), size=(DRAWS + 1, BATCH)))].numpy()
        truth, mode = x[0], x[1]
        ordered, y = diagnostics.relabelled(x[None, 1:], np.zeros((1, DRAWS, BATCH), int), mode)
        found = cells.cells(Posterior(x=ordered, y=y, mode=mode, kind="sampler", truth=truth), columns)
        assert found.right is not None
        gaps.append(found.probability.mean() - found.right.mean())
        plain = columns.record(torch.as_tensor(ordered[0])).numpy()
        estimate = [[cells._decided(plain[:, b, j], c.tolerance)[0] for j, c in enumerate(columns.varying)]
                    for b in range(BATCH)]  # fmt: skip
        of_the_mode.append(cells.agrees(columns, plain, np.array(estimate)).mean() - found.right.mean())
    off, twin = (float(np.mean(g)) / (float(np.std(g, ddof=1)) / CASES**0.5) for g in (gaps, of_the_mode))
    assert abs(off) < 3  # standard errors
    assert twin < -4


def test_draws_are_put_into_the_order_of_the_most_right_cells(public: tuple[torch.Tensor, Columns]) -> None:
    rows, columns = public
    estimate = columns.record(rows[:4]).numpy()
    draws = columns.record(rows[torch.randint(len(rows), (50, 4), generator=torch.Generator().manual_seed(0))]).numpy()
    made = cells.aligned(columns, estimate, draws)
    for before, after in zip(draws, made, strict=True):  # the slow way, one draw at a time
        order = cells.matched(columns, estimate, before)
        most = cells.agrees(columns, estimate[order], before).sum()
        assert cells.agrees(columns, estimate, after).sum() == most
        assert cells.agrees(columns, estimate, before).sum() <= most
        assert sorted(map(tuple, np.nan_to_num(after, nan=-1))) == sorted(map(tuple, np.nan_to_num(before, nan=-1)))
    assert (np.nan_to_num(cells.aligned(columns, estimate[:1], draws[:, :1])) == np.nan_to_num(draws[:, :1])).all()
