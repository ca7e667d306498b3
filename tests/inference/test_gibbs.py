"""Gibbs over the cells of records: the posterior that enumeration has exactly, and calibrated cells."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import misfit
from tables import columns_of, shared, without_gaps, written
from torch import Tensor

from pplleak.density import cell_blocks, cell_fits, cell_moves, cell_starts, cell_surrogates, cells
from pplleak.density.cell_moves import Sweep
from pplleak.density.cell_surrogates import Quadratic
from pplleak.errors import BadInput
from pplleak.inference import gibbs
from pplleak.models import optimal

SCORES = torch.linspace(-5, 5, 201, dtype=torch.float64)
QUICK: dict[str, Any] = {"draws": 3, "settle": 3, "inner": 0}
FEW: dict[str, Any] = {"chains": 64, "particles": 64, "draws": 60, "settle": 6, "moves": 1, "most": 8, "starts": 0}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("table") / "houses.csv")


def exact(observed: Any, model: Any) -> tuple[Tensor, Tensor]:
    """Every state of a batch's codes, (M, batch, F), and its posterior probability, a score integrated on a grid."""
    density, _ = gibbs.opened(model, observed.client, observed)
    sizes = columns_of(observed).sizes
    each = list(itertools.product(*(range(n) for n in sizes)))
    states = torch.tensor(list(itertools.product(each, repeat=observed.batch_size)))
    z = SCORES[:, None] if density.dim else torch.zeros(1, 0, dtype=torch.float64)
    totals = []
    for codes in states:
        prior, fit = density.fixed({"codes": codes.expand(len(z), *codes.shape)}).terms(z)
        totals.append((prior + fit).logsumexp(0))
    return states, torch.stack(totals).softmax(0)


def indicators(observed: Any, codes: Tensor) -> Tensor:
    """Which state each column of each record is in, as zeros and ones: (…, batch · Σ states)."""
    sizes = columns_of(observed).sizes
    each = [torch.nn.functional.one_hot(codes[..., f], n) for f, n in enumerate(sizes)]
    return torch.cat(each, -1).flatten(-2).double()


def sampled(observed: Any, model: Any, **settings: Any) -> np.ndarray:
    """The indicators of the draws, (chain, draw, quantity)."""
    found = gibbs.run(model, observed, observed.client, seed=0, **{**FEW, **settings})
    assert found.kind == "sampler" and not found.interrupted
    codes, _ = columns_of(observed).decode(torch.as_tensor(found.x))
    return indicators(observed, codes).numpy()


def agrees(draws: np.ndarray, expected: Tensor) -> float:
    """The farthest of the frequencies from their probabilities, in standard errors; of those that are not rare."""
    seen = (expected > 0.02) & (expected < 0.98)
    assert int(seen.sum()) > 3, "nothing is open: there is nothing to compare"
    return misfit(draws[..., seen.numpy()], expected[seen], floor=80)


def frequencies(observed: Any, model: Any) -> Tensor:
    states, weights = exact(observed, model)
    return weights @ indicators(observed, states)


@pytest.mark.slow
@pytest.mark.parametrize(("inner", "activation"), [(0, "relu"), (2, "relu"), (2, "gelu")])
def test_the_cells_probabilities_are_those_of_enumeration(file: Path, inner: int, activation: str) -> None:
    """Of categories, a grid, and a number that may be missing; with every candidate looked at, and by the surrogate."""
    observed, model = shared(file, sigma=0.2, index=1, activation=activation)
    draws = sampled(observed, model, inner=inner, draws=30)
    assert agrees(draws, frequencies(observed, model)) < 5
    assert agrees(draws, frequencies(observed, functools.partial(model, sigma=0.5))) > 5


@pytest.mark.slow
def test_forms_that_are_fitted_on_the_way_leave_the_probabilities_as_they_are(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin takes the ends of the fitted forms without asking the likelihood."""
    monkeypatch.setattr(cell_fits, "SURE", 2.0)
    monkeypatch.setattr(cell_fits, "FIT", 0.0)
    monkeypatch.setattr(cell_moves, "TRUE", 0)
    observed, model = shared(file, sigma=0.2, index=1)
    expected = frequencies(observed, model)
    assert agrees(sampled(observed, model, inner=2, draws=30), expected) < 5
    monkeypatch.setattr(cell_moves, "refused", lambda logits: torch.zeros_like(logits, dtype=torch.bool))
    assert agrees(sampled(observed, model, inner=2, draws=30), expected) > 5


@pytest.mark.slow
@pytest.mark.parametrize("inner", [0, 1])
def test_islands_of_short_chains_have_the_probabilities_of_enumeration(
    file: Path, inner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Islands are independent of each other, their chains are not: each island counts as one. With every candidate
    looked at, and by forms that the warm-up fits; the twin takes the ends of these without asking the likelihood."""
    observed, model = shared(file, sigma=0.2, index=1)
    expected = frequencies(observed, model)
    many: dict[str, Any] = {**FEW, "islands": 32, "particles": 128, "short": 4, "chains": 8, "draws": 64}

    def draws() -> np.ndarray:
        found = gibbs.run(model, observed, observed.client, seed=0, inner=inner, **many)
        assert found.attrs["superchains"] == 32 and found.x.shape[:2] == (128, 4)
        assert found.rhat_max is not None and found.rhat_max < 1.2
        assert (found.attrs["accepted"] is None) == (not inner)
        seen = indicators(observed, columns_of(observed).decode(torch.as_tensor(found.x))[0]).numpy()
        return seen.reshape(32, -1, seen.shape[-1])

    monkeypatch.setattr(cell_moves, "TRUE", 0)
    exact = draws()
    assert agrees(exact, expected) < 5
    assert agrees(exact, frequencies(observed, functools.partial(model, sigma=0.5))) > 5
    if inner:
        monkeypatch.setattr(cell_moves, "refused", lambda logits: torch.zeros_like(logits, dtype=torch.bool))
        assert agrees(draws(), expected) > 5


def test_records_of_one_label_share_a_form(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observed, model = shared(file, batch=3, labels=[0, 1, 0])
    density, records = gibbs.opened(model, observed.client, observed)
    batch = cell_starts.drawn(records, 40, 3)
    fit = cells.likelihood(density, batch)
    assert isinstance(fit, cells.Residual)
    together, apart = cell_fits.forms(fit, batch.x, apart=False), cell_fits.forms(fit, batch.x)
    assert together[0] is together[2] is not together[1] and apart[0] is not apart[2]
    alone = Quadratic.fitted(fit, batch.x[:, [0, 2]].flatten(0, 1), 2)  # the label's, whichever record it is said of
    torch.testing.assert_close(together[2].form, alone.form)
    monkeypatch.setattr(cell_fits, "ENTRIES", 2 * batch.x.shape[2] * observed.client.update_size)
    again = cell_fits.forms(fit, batch.x)
    assert again[0] is again[2]  # three are too large
    monkeypatch.setattr(cell_fits, "ENTRIES", batch.x.shape[2] * observed.client.update_size)
    assert cell_fits.forms(fit, batch.x) == []


def test_where_a_climb_came_higher_than_the_islands_chains_are_long(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Islands that agree on the wrong records must not pass for a posterior."""
    observed, model = shared(file, sigma=0.1, index=1)
    settings: dict[str, Any] = {"chains": 4, "particles": 16, "short": 4, "draws": 4, "moves": 1, "settle": 1,
                                "steps": 200, "begin": "", "inner": 0}  # fmt: skip
    monkeypatch.setattr(cell_starts, "FAR", float("inf"))
    monkeypatch.setattr(cell_starts, "warmed", lambda learning, batch, *_: (learning.sweep.begun(batch, 1.0), []))
    monkeypatch.setattr(cell_starts, "settled", lambda sweep, batch, _: sweep.begun(batch, 1.0))
    ends = cell_starts.climbed

    def true(fit: Any, records: Any, *_: Any) -> cells.Batch:
        made = ends(fit, records, 2, 1, lambda _, n: range(n))
        return cell_starts.joined([made, cell_starts.nearest(records, observed.truth)])

    monkeypatch.setattr(cell_starts, "climbed", true)
    higher = gibbs.run(model, observed, observed.client, seed=0, **settings)
    assert "superchains" not in higher.attrs and higher.attrs["groups"] == 7
    monkeypatch.setattr(cell_starts, "climbed", lambda fit, records, *_: cell_starts.drawn(records, 1, 1))
    assert gibbs.run(model, observed, observed.client, seed=3, **settings).attrs["superchains"] == 4


def test_a_fitted_form_is_that_of_least_squares(file: Path) -> None:
    """Against updates in full and a ridge that is written as further rows."""
    observed, model = shared(file, batch=2, labels=[0, 1])
    density, records = gibbs.opened(model, observed.client, observed)
    torch.manual_seed(0)
    batch = cell_starts.drawn(records, 40, 2)
    fit = cells.likelihood(density, batch)
    assert isinstance(fit, cells.Residual)
    beside = fit.beside(batch, 1)
    form = Quadratic.fitted(fit, batch.x[:, 1], 1).told(beside, 1)
    x, width = batch.x[:, 1], batch.x.shape[2]
    updates = torch.cat([observed.client.update(row[None], torch.tensor([1])).materialise()[None] for row in x])
    away = torch.cat([x - x.mean(0), cell_surrogates.RIDGE**0.5 * torch.eye(width).double()])
    wanted = torch.cat([updates - updates.mean(0), updates.new_zeros(width, updates.shape[1])])
    matrix = torch.linalg.lstsq(away, wanted, driver="gelsd").solution
    near = updates.mean(0) + (x - x.mean(0)) @ matrix

    def height(u: Tensor) -> Tensor:
        return -(beside - fit.weight(1) * u).square().sum(1) / (2 * fit.sigma**2)

    torch.testing.assert_close(form.height(x), height(near) - height(updates.mean(0)), rtol=1e-7, atol=1e-7)
    assert float((height(near) - height(updates)).std()) > 1e-3  # of a network that is not linear


@pytest.mark.slow
def test_numbers_that_are_moved_together_have_the_probabilities_of_enumeration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin takes the candidates of the surrogate's Gaussian for draws of nothing: it forgets q."""
    observed, model = shared(without_gaps(tmp_path / "t.csv"), sigma=0.5, index=1, activation="gelu")
    moved = Sweep(gibbs.opened(model, observed.client, observed)[1], None, 8, 2)  # type: ignore[arg-type]
    assert len(moved.block.entries) == 3
    expected = frequencies(observed, model)
    assert agrees(sampled(observed, model, inner=1, draws=40), expected) < 5
    drawn = cell_blocks.Block.drawn

    def forgetful(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        codes, scores, log_q = drawn(*args)
        return codes, scores, 0 * log_q

    monkeypatch.setattr(cell_blocks.Block, "drawn", forgetful)
    assert agrees(sampled(observed, model, inner=1, draws=40), expected) > 5


def test_one_random_number_draws_a_grids_value_by_its_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never one that has none, whatever that number is; the twin, which reads the law from the other end, is
    rejected."""
    law, size = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0], dtype=torch.float64), 20000
    torch.manual_seed(0)
    picked = cell_blocks._one_of(law.cumsum(-1).repeat(size, 1))
    counts = torch.bincount(picked, minlength=6).double()

    def chi2(law: Tensor) -> float:
        return float(((counts - size * law).square() / (size * law).clamp(min=1e-9)).sum())

    assert chi2(law) < 13.8 < chi2(law.flip(-1))  # 2 degrees of freedom, 0.1 %
    for extreme, value in ((0.0, 4), (1 - 2**-53, 1)):
        monkeypatch.setattr(torch, "rand_like", lambda like, extreme=extreme: torch.full_like(like, extreme))
        assert cell_blocks._one_of(law.cumsum(-1)[None]).tolist() == [value]


def test_what_a_block_was_drawn_by_is_the_density_that_it_says(tmp_path: Path) -> None:
    """For any h(s) that integrates to 1, the mean of 1[grids are c] h(s) / q is 1, for every c; twice q is not q."""
    observed, model = shared(without_gaps(tmp_path / "t.csv"), sigma=0.1, index=1, activation="gelu")
    density, records = gibbs.opened(model, observed.client, observed)
    torch.manual_seed(0)
    batch = cell_starts.drawn(records, 1, 1)
    fit = cells.likelihood(density, batch)
    assert isinstance(fit, cells.Residual)
    form = Quadratic.about(fit, batch, 0).told(fit.beside(batch, 0), 0)
    block = cell_blocks.Block.of(records)
    codes, scores, log_q = block.drawn(
        records, form, 0.05, 20_001, batch.codes[:, 0], batch.scores[:, 0], batch.x[:, 0]
    )
    seen, log_q = scores[0, 1:, 0].double(), log_q[0, 1:]
    picked = codes[0, 1:, block.grids[0]] * 10 + codes[0, 1:, block.grids[1]]
    compared = 0
    for state in picked.unique().tolist():
        here = picked == state
        if int(here.sum()) < 500:
            continue
        centre, width = float(seen[here].median()), 0.3 * float(seen[here].std())
        h = torch.exp(-0.5 * ((seen - centre) / width).square()) / width  # log_q, too, leaves 1 / √2π out
        weights = torch.where(here, h * torch.exp(-log_q), 0.0)
        error = float(weights.std()) / len(weights) ** 0.5
        assert abs(float(weights.mean()) - 1) < 5 * error < 0.4
        assert abs(float(weights.mean()) / 2 - 1) > 5 * error
        compared += 1
    assert compared > 2


@pytest.mark.slow
def test_the_records_of_a_batch_are_told_apart_as_enumeration_tells_them(file: Path) -> None:
    observed, model = shared(file, batch=2, sigma=0.2, index=3, labels=[0, 1], drop=("price",))
    draws = sampled(observed, model, inner=1, draws=25)
    assert agrees(draws, frequencies(observed, model)) < 5
    assert agrees(draws, frequencies(replace(observed, labels=torch.tensor([1, 0])), model)) > 5


def test_a_record_beside_its_residual_fits_as_the_batch_does(file: Path) -> None:
    """Up to a constant of each chain, and for the quadratic form at the record that it was made about."""
    observed, model = shared(file, batch=3, labels=[0, 1, 1])
    density, records = gibbs.opened(model, observed.client, observed)
    batch = cell_starts.drawn(records, 4, 3)
    fast, slow = cells.likelihood(density, batch), cells.Whole(density)
    assert isinstance(fast, cells.Residual)
    sweep = Sweep(records, fast, 8, 0)
    beside = fast.beside(batch, 0)
    for b in range(3):
        for move in sweep.moves:
            tried = move(batch.codes[:, b], batch.scores[:, b], batch.x[:, b])
            torch.testing.assert_close(tried.x, records.decode(tried.codes, tried.scores).flatten(2))
            quick, whole = fast.at(beside, batch, b, tried), slow.at(beside, batch, b, tried)
            torch.testing.assert_close(quick - quick[:, :1], whole - whole[:, :1], atol=1e-7, rtol=1e-7)
        made = Quadratic.about(fast, batch, b).told(beside, b)
        here = cells.Tried.one(batch.codes[:, b], batch.scores[:, b], batch.x[:, b])
        steps = cell_surrogates.stepped(observed.client.columns, batch.x[:, b])
        for entry in range(batch.x.shape[2]):  # a secant is exact where it ends
            x = batch.x[:, b].clone()
            x[:, entry] += steps[:, entry]
            true = fast.at(beside, batch, b, replace(here, x=x[:, None])) - fast.at(beside, batch, b, here)
            torch.testing.assert_close(made.height(x), true[:, 0], atol=1e-7, rtol=1e-6)
        if b < 2:
            beside = fast.after(beside, batch, b)
            torch.testing.assert_close(beside, fast.beside(batch, b + 1))


@pytest.mark.slow
def test_cells_of_records_drawn_from_the_prior_are_calibrated(file: Path) -> None:
    """Of the cells that are claimed with probability p, a share p is right; a posterior twice as sharp is refused.

    Many short chains, of which the draws are worth the most. Over these 60 records the standardised score was 0.2, and
    -3.2 of the twin.
    """
    observed, model = shared(file)
    columns, claims, right, wrong = columns_of(observed), [], [], []
    for k in range(60):
        torch.manual_seed(k)
        drawn = optimal.priors.make(optimal.Named("records"), observed.client, observed.public)
        x = drawn.sample(1)
        y = torch.tensor([k % 2])
        g = observed.client.update(x, y).materialise() + 0.2 * torch.randn(observed.client.update_size).double()
        seen = replace(observed, g=g.detach(), labels=y, truth=x)
        found = gibbs.run(functools.partial(model, sigma=0.2), seen, seen.client, seed=k, **{**FEW, **QUICK})
        codes, _ = columns.decode(torch.as_tensor(found.draws))
        share = indicators(observed, codes).mean(0)
        claims.append(share)
        right.append(indicators(observed, columns.decode(x)[0]))
        sharp = torch.cat([(p**2) / (p**2).sum() for p in share.split(list(columns.sizes))])
        wrong.append(sharp)
    truth = torch.stack(right)
    for claimed, fits in ((torch.stack(claims), True), (torch.stack(wrong), False)):
        # E[p (1[right] − p)] is 0 where p is the probability of the cell
        score = (claimed * (truth - claimed)).sum(1)
        assert (abs(float(score.mean())) < 2.6 * float(score.std()) / len(score) ** 0.5) is fits


def test_other_models_and_open_labels_are_declined_in_one_line(file: Path) -> None:
    observed, model = shared(file)
    with pytest.raises(BadInput, match="prior is `records`"):
        gibbs.run(functools.partial(optimal.model, sigma=0.1, reference=observed.public), observed, observed.client)
    with pytest.raises(BadInput, match="known labels"):
        gibbs.run(model, replace(observed, labels=None), observed.client)
    with pytest.raises(BadInput, match="do not divide"):
        gibbs.run(model, observed, observed.client, particles=10, islands=4)


@pytest.mark.slow
def test_one_seed_is_one_result(file: Path) -> None:
    observed, model = shared(file, sigma=1.0)
    a, b = (
        gibbs.run(model, observed, observed.client, seed=3, chains=4, particles=8, draws=3, settle=1) for _ in range(2)
    )
    assert np.array_equal(a.x, b.x)
