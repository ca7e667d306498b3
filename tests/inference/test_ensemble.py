"""TabLeak and its pooled ensemble: relaxed records stay inside their columns, and one seed is one result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tables import columns_of, shared, written

from pplleak.inference import ensemble
from pplleak.models import tableak
from pplleak.posterior import cells


def test_a_relaxed_record_is_made_of_probabilities_and_numbers_within_their_range(tmp_path: Path) -> None:
    observed, _ = shared(written(tmp_path / "houses.csv"))
    columns = columns_of(observed)
    x = tableak.relaxed(observed.client, 5 * torch.randn(50, 2, columns.width, dtype=torch.float64))
    assert torch.allclose(x[..., :3].sum(-1), torch.ones(50, 2, dtype=torch.float64))
    rooms = columns.varying[1]
    seen = x[..., 3] * rooms.sd + rooms.mean
    assert float(seen.min()) >= rooms.low and float(seen.max()) <= rooms.high


@pytest.mark.slow
def test_a_clean_gradient_of_one_record_is_inverted_and_noise_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "houses.csv")
    accuracy = []
    for sigma, steps in ((1e-6, 400), (10.0, 100)):
        observed, _ = shared(path, sigma=sigma, index=2, widths=(20,))
        found = ensemble.run(tableak.model, observed, observed.client, seed=0, starts=6, steps=steps)
        assert found.kind == "point"
        columns, truth = columns_of(observed), observed.truth
        assert truth is not None
        seen = found.with_(truth=truth.numpy(), attrs={**found.attrs, "columns": columns.to_json()})
        right = cells.cells(seen, columns).right
        assert right is not None
        accuracy.append(float(right.mean()))
        assert np.shape(found.attrs["entropy"]) == (1, 3)
    assert accuracy[0] == 1.0 and accuracy[1] < 1.0
    once, again = (ensemble.run(tableak.model, observed, observed.client, seed=0, starts=6, steps=40) for _ in range(2))
    assert np.array_equal(once.mode, again.mode)
