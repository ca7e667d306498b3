"""Langevin's step against targets known exactly, its coordinates against a dense Hessian, and its size."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from conftest import LIMIT, assert_moments, batch_of, misfit, observe, tiny, wrong_twins
from torch import Tensor

from pplleak import density
from pplleak.density import diagonal, whitening
from pplleak.federation.observation import Observation
from pplleak.inference import langevin
from pplleak.models import logistic
from pplleak.studies.attack import report

SD = torch.tensor([0.7, 1.0, 1.6], dtype=torch.float64)
SIZE = 0.9


def normal(w: Tensor) -> tuple[Tensor, Tensor]:
    """log Normal(w; 0, diag(SD²)) and its gradient."""
    return -0.5 * (w / SD).square().sum(1), -w / SD.square()


def chains(adjust: bool, draws: int = 300, thin: int = 5, count: int = 32) -> tuple[np.ndarray, float]:
    """Draws (chain, draw, 3) of the step from starts in the target, and the mean acceptance."""
    w = SD * torch.randn(count, 3, dtype=torch.float64)
    state, kept, accepted = langevin.State(w, *normal(w)), [], []
    for t in range(50 + draws * thin):
        state, acceptance = langevin.step(normal, state, SIZE, adjust=adjust)
        accepted.append(float(acceptance.mean()))
        if t >= 50 and t % thin == 0:
            kept.append(state.w)
    return torch.stack(kept, 1).numpy(), float(np.mean(accepted))


def test_mala_draws_the_target_itself() -> None:
    draws, accepted = chains(adjust=True)
    assert 0.3 < accepted < 0.95, "a test that accepts all, or nothing, tests nothing"
    assert_moments(draws, torch.zeros(3), SD)


def test_ula_draws_the_wider_gaussian_that_the_docstring_says_and_not_the_target() -> None:
    draws, _ = chains(adjust=False)
    wider = SD / (1 - SIZE**2 / (4 * SD.square())).sqrt()
    assert_moments(draws, torch.zeros(3), wider)
    assert misfit(draws, torch.zeros(3), SD) > LIMIT


@pytest.mark.slow
def test_3072_dimensions_are_drawn_exactly_without_a_dense_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    def dense(*_: object) -> None:
        raise AssertionError("a dense Hessian was asked for")

    monkeypatch.setattr(whitening, "hessian", dense)
    client = tiny("linear", (3, 32, 32), classes=3, dtype="float32")  # zero weights: exactly Gaussian
    observed = observe(client, 0.3)
    model = functools.partial(logistic.model, sigma=0.3)
    exact = logistic.exact_posterior(client, observed, sigma=0.3)
    settings = {"chains": 32, "draws": 40, "warmup": 60, "thin": 8, "starts": 2, "steps": 60}
    found = langevin.run(model, observed, client, seed=0, **settings)
    every = slice(None, None, 64)  # pixels, for the sake of the test's own time
    draws = found.x.reshape(32, 40, -1).astype(np.float64)[:, :, every]
    mean, sd = exact.mean()[every], exact.sd()[every]
    assert misfit(draws, mean, sd) <= LIMIT
    for name, twin in wrong_twins(draws).items():
        assert misfit(twin, mean, sd) > LIMIT, f"the check has no power: it accepts {name}"
    assert found.attrs["step_size"] < 1  # ~ dim^(-1/6)
    assert 0.4 < found.stats["acceptance_rate"].mean() < 0.8


@pytest.mark.slow
def test_without_the_metropolis_test_the_result_wears_its_name() -> None:
    client = tiny("linear", classes=2, zero=False)
    observed, model = observe(client, 0.1), functools.partial(logistic.model, sigma=0.1)
    settings = {"chains": 4, "draws": 30, "warmup": 40, "thin": 1, "starts": 2, "steps": 20}
    exact = langevin.run(model, observed, client, **settings)
    biased = langevin.run(model, observed, client, kernel="ula", **settings)
    assert (exact.kind, exact.approximation) == ("sampler", "")
    assert biased.kind == "approximate sampler" and "without a Metropolis test" in biased.approximation
    assert biased.rhat_max is not None and biased.ess_min is not None and biased.khat is None
    assert biased.attrs["step_size"] == pytest.approx(exact.attrs["step_size"] / 2)
    assert report.verdict(biased.summary).startswith("approximate, by Langevin steps of size")
    assert "approximate" not in report.verdict(exact.summary)


# -- coordinates ---------------------------------------------------------------------------------------------------


def hidden() -> density.Density:
    client = tiny()
    x, y = batch_of(client)
    g = client.update(x, y).materialise()
    return density.build(functools.partial(logistic.model, sigma=0.05), client, Observation(g, 1, y))


def test_probes_estimate_the_diagonal_of_the_hessian_without_bias() -> None:
    built, z = hidden(), torch.full((4,), 0.4, dtype=torch.float64)
    h = whitening.hessian(built, z)
    estimates = torch.stack([diagonal.curvature(built, z, 8) for _ in range(100)])
    error = (estimates.mean(0) - h.diagonal()) / (estimates.std(0) / 100**0.5)
    assert float(error.abs().max()) < LIMIT
    twin = (estimates.mean(0) - h.sum(1)) / (estimates.std(0) / 100**0.5)  # signs that were all one
    assert float(twin.abs().max()) > LIMIT


def test_widths_are_those_of_the_curvature_and_never_imaginary() -> None:
    built = hidden()
    fitted = diagonal.fit(built, torch.full((4,), 0.4, dtype=torch.float64), probes=2000)
    h = whitening.hessian(built, fitted.mode)
    assert bool((h.diagonal() > 0).all())
    torch.testing.assert_close(fitted.widths, h.diagonal().rsqrt(), rtol=0.1, atol=0)
    far = diagonal.fit(built, torch.full((4,), 30.0, dtype=torch.float64), probes=1)
    assert bool(far.widths.isfinite().all()) and bool((far.widths > 0).all())
    torch.testing.assert_close(fitted.decode(torch.ones(1, 4).double())[0], fitted.mode + fitted.widths)
    assert fitted.log_det == pytest.approx(float(fitted.widths.log().sum()))


def test_widths_seen_by_the_chains_lie_between_the_marginal_and_the_conditional_ones() -> None:
    covariance = torch.tensor([[4.0, 0.9], [0.9, 0.25]], dtype=torch.float64)
    precision = torch.linalg.inv(covariance)
    z = torch.randn(100_000, 2, dtype=torch.float64) @ torch.linalg.cholesky(covariance).mT
    widths = diagonal.nearest(z, -z @ precision)
    torch.testing.assert_close(widths, (covariance.diagonal() / precision.diagonal()) ** 0.25, rtol=0.02, atol=0)
    assert bool((widths < covariance.diagonal().sqrt()).all()) and bool((widths > precision.diagonal().rsqrt()).all())
