"""Records in the span of a first layer's gradient, and the greedy sweeps that mend them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tables import columns_of, rows, shared, written

from pplleak.density import cell_spans, cell_starts
from pplleak.density.cell_moves import Sweep
from pplleak.density.cells import Residual, likelihood
from pplleak.inference import gibbs
from pplleak.inference import map as point
from pplleak.posterior import cells

HEADER = "colour,shape,taste,rooms,price,sold\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of more categories than `tables.rows` has."""
    draw = torch.Generator().manual_seed(1)
    lines = []
    for line in rows(400).splitlines():
        colour, rooms, price, sold = line.split(",")
        shape, taste = (int(torch.randint(n, (), generator=draw)) for n in (5, 6))
        lines.append(f"{colour},s{shape},t{taste},{rooms},{price or 0},{sold}")
    return written(tmp_path_factory.mktemp("table") / "t.csv", HEADER + "\n".join(lines) + "\n")


def opened(file: Path, sigma: float, batch: int = 3) -> tuple[Any, Any, Any]:
    observed, model = shared(file, batch, sigma, widths=(60,))
    density, records = gibbs.opened(model, observed.client, observed)
    fit = likelihood(density, cell_starts.drawn(records, 1, batch))
    assert isinstance(fit, Residual)
    return observed, records, fit


@torch.no_grad()
def test_the_records_of_a_clean_gradient_lie_in_its_span(file: Path) -> None:
    observed, records, fit = opened(file, 1e-6)
    found = cell_spans.read(fit, records)
    assert found is not None and cell_starts.explains(fit, cell_spans.height(fit, found))
    columns = columns_of(observed)
    truth, seen = columns.record(observed.truth).numpy(), columns.record(found.x[0]).numpy()
    assert cells.agrees(columns, seen[cells.matched(columns, seen, truth)], truth).all()


@torch.no_grad()
def test_a_true_record_has_a_dual_of_its_own_and_another_has_not(file: Path) -> None:
    observed, _, fit = opened(file, 1e-6)
    client, truth = observed.client, observed.truth
    span = cell_spans.Span.of(cell_spans.first_layer(client, observed.g), fit.sigma, len(truth))
    bias = client.slices[cell_spans.fully_connected(client)[1]]
    deltas = torch.stack([fit.weight(b) * fit.update(truth[b : b + 1], b).part(bias)[0].double() for b in range(3)])
    pairs = torch.stack([span.ranks(truth, d) for d in deltas])
    assert torch.allclose(pairs, torch.eye(3, dtype=torch.float64), atol=1e-2)
    energy = span.outside(truth)[0]
    other = truth.clone()
    other[:, 0] = 1 - other[:, 0]  # another first category beside its own
    assert float(span.outside(other)[0].min()) > 100 * float(energy.max())


@torch.no_grad()
def test_noise_leaves_no_span(file: Path) -> None:
    _, records, fit = opened(file, 1.0)
    assert cell_spans.read(fit, records) is None


@torch.no_grad()
def test_a_greedy_sweep_never_falls_and_one_that_draws_does(file: Path) -> None:
    _, records, fit = opened(file, 0.1)
    begun = cell_starts.drawn(records, 8, 3)
    falls = {}
    for greedy in (True, False):
        sweep = Sweep(records, fit, 16, 0, greedy=greedy)
        state, falls[greedy] = sweep.begun(begun, 1.0), 0
        for _ in range(6):
            new = sweep(state)
            falls[greedy] += int((new.height < state.height - 1e-6).sum())
            state = new
    assert falls[True] == 0 < falls[False]


@pytest.mark.slow
def test_a_map_of_several_clean_records_is_these_records(file: Path) -> None:
    observed, model = shared(file, 3, 1e-4, widths=(60,))
    found = point.run(model, observed, observed.client, starts=2, steps=60)
    columns = columns_of(observed)
    truth, seen = (columns.record(torch.as_tensor(x)).numpy() for x in (observed.truth, found.mode))
    assert cells.agrees(columns, seen[cells.matched(columns, seen, truth)], truth).all()
