"""Records in the span of a first layer's gradient, and the greedy sweeps that mend them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tables import columns_of, rows, shared, written
from torch import Tensor

from pplleak.channels.gaussian import Gaussian
from pplleak.density import cell_annealing, cell_spans, cell_starts, record_span
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


def opened(file: Path, sigma: float, batch: int = 3, **table: Any) -> tuple[Any, Any, Any]:
    observed, model = shared(file, batch, sigma, widths=(60,), **table)
    density, records = gibbs.opened(model, observed.client, observed)
    fit = likelihood(density, cell_starts.drawn(records, 1, batch))
    assert isinstance(fit, Residual)
    return observed, records, fit


@torch.no_grad()
@pytest.mark.parametrize("drop", [(), ("rooms", "price")])
def test_the_records_of_a_clean_gradient_lie_in_its_span(file: Path, drop: tuple[str, ...]) -> None:
    """With numbers, and of categories alone."""
    observed, records, fit = opened(file, 1e-6, drop=drop)
    found = cell_spans.read(fit, records)
    assert found is not None and cell_starts.explains(fit, cell_spans.height(fit, found))
    columns = columns_of(observed)
    truth, seen = columns.record(observed.truth).numpy(), columns.record(found.x[0]).numpy()
    assert cells.agrees(columns, seen[cells.matched(columns, seen, truth)], truth).all()


def spans_of(observed: Any, fit: Any) -> tuple[Any, slice]:
    """Both spans of the gradient, and where δ lies in it."""
    client = observed.client
    span = record_span.Span.of(cell_spans.first_layer(client, observed.g), fit.sigma, observed.batch_size)
    return span, client.slices[cell_spans.fully_connected(client)[1]]


@torch.no_grad()
def test_a_sum_of_records_lies_in_the_rows_span_and_its_delta_in_no_other(file: Path) -> None:
    """a + b − c: nothing but the second span tells it from a record of the batch."""
    observed, _, fit = opened(file, 1e-6)
    span, bias = spans_of(observed, fit)
    truth = observed.truth.double()

    def chi2(x: Tensor, b: int) -> tuple[float, float]:
        one = torch.cat([x, torch.ones(1, dtype=torch.float64)])
        both = (span.off(one, span.v), span.off(record_span.delta(fit, x[None], b, bias)[0], span.u))
        return tuple(float(energy / (fit.sigma**2 * blur)) for energy, blur in both)  # type: ignore[return-value]

    directions = len(span.v) - 3, len(span.u) - 3
    other = truth[0].clone()
    other[0] = 1 - other[0]  # another first category beside its own
    for b in range(3):
        assert all(c < 2 * d for c, d in zip(chi2(truth[b], b), directions, strict=True))
        rows, columns = chi2(truth[0] + truth[1] - truth[2], b)
        assert rows < 2 * directions[0] and columns > 100 * directions[1]
    assert chi2(other, 0)[0] > 100 * directions[0]


@torch.no_grad()
def test_numbers_are_drawn_to_where_both_spans_have_them_and_solved_for(file: Path) -> None:
    """From those that E is least for; the wrong label has another sign, and is no record's."""
    observed, records, fit = opened(file, 1e-6)
    span, bias = spans_of(observed, fit)
    truth = observed.truth.double()
    numbers = cell_annealing.numbers_of(records.columns)
    begun = truth.clone()
    begun[:, numbers] += 0.01
    torch.manual_seed(0)
    found = [record_span.nearest(fit, records, span, span, begun, b, bias) for b in range(3)]
    heights = torch.stack([height for _, height, _ in found])
    for b, (_, _, inside) in enumerate(found):
        same = observed.labels == observed.labels[b]
        assert bool(inside[b]) and not bool(inside[~same].any())
    assert torch.equal(observed.labels[cell_spans._pairs(heights)[1]], observed.labels)
    near = torch.stack([x[b] for b, (x, _, _) in enumerate(found)])
    solved = record_span.solved(fit, records, cell_spans.first_layer(observed.client, observed.g), near, bias)
    assert float((solved - truth).abs().max()) < 1e-3 < float((begun - truth).abs().max())


@torch.no_grad()
def test_records_that_share_their_categories_are_told_apart(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their difference, in numbers alone, lies in the rows' span, and along it E tells no record's numbers; the twin
    takes those that E is least for."""
    observed, records, fit = opened(file, 1e-6)
    columns, truth = columns_of(observed), observed.truth.clone()
    words = torch.cat([entries for entries, _ in cell_annealing.choices_of(columns)])
    truth[1, words] = truth[0, words]
    torch.manual_seed(0)
    g = Gaussian(observed.client.update(truth, observed.labels), fit.sigma).sample()
    fit = replace(fit, density=replace(fit.density, observed=replace(observed, g=g, truth=truth)))

    def told() -> bool:
        found = cell_spans.in_span(fit, records)
        if found is None:
            return False
        seen, true = columns.record(found.to(truth)).numpy(), columns.record(truth).numpy()
        return bool(cells.agrees(columns, seen[cells.matched(columns, seen, true)], true).all())

    assert told()
    monkeypatch.setattr(record_span, "_tried", lambda records, span, x, count: x[:, None])
    assert not told()


@torch.no_grad()
def test_real_numbers_are_fitted_beside_their_grids(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that are right but for a hair in each number explain the gradient once grids are whole and the rest has
    been fitted beside them; the twin, which takes the rest as it was, does not."""
    observed, records, fit = opened(file, 1e-6)
    near = observed.truth.double()
    near[:, cell_annealing.numbers_of(records.columns)] += 0.002
    assert cell_starts.explains(fit, cell_spans.height(fit, cell_spans._refined(fit, records, near)))
    monkeypatch.setattr(cell_spans, "_fitted", lambda fit, x, entries: x)
    assert not cell_starts.explains(fit, cell_spans.height(fit, cell_spans._refined(fit, records, near)))


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
