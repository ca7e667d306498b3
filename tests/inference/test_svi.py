"""Where the guides of SVI start: at the member of their family that is closest to the Laplace fit."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_moments, observe, tiny
from torch import Tensor

from pplleak.density import whitening
from pplleak.errors import BadInput
from pplleak.inference import svi
from pplleak.models import logistic
from pplleak.priors._splines import coupling_spline

DIM, RANK = 12, 3
SETTINGS: dict[str, Any] = {"chains": 4, "draws": 200, "starts": 4, "steps": 60}


def precision_of(rank: int) -> Tensor:
    """A precision whose covariance is a diagonal and `rank` factors, with a few soft directions."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(DIM, rank, dtype=torch.float64, generator=generator)
    diagonal = 0.2 + torch.rand(DIM, dtype=torch.float64, generator=generator)
    return torch.linalg.inv(factor @ factor.mT + diagonal.diag())


def divergence(covariance: Tensor, precision: Tensor) -> float:
    """KL(Normal(0, covariance) ‖ Normal(0, precision⁻¹))."""
    return 0.5 * float((precision @ covariance).trace() - DIM - covariance.logdet() - precision.logdet())


def covariance(s: Tensor, factor: Tensor) -> Tensor:
    return s[:, None] * (torch.eye(DIM, dtype=s.dtype) + factor @ factor.mT) * s


def test_the_low_rank_start_finds_a_covariance_of_its_own_family() -> None:
    precision = precision_of(RANK)
    found = divergence(covariance(*svi.low_rank(precision, RANK, sweeps=500)), precision)
    diagonal = divergence(precision.diagonal().reciprocal().diag(), precision)
    assert found < 1e-3 * diagonal
    few = divergence(covariance(*svi.low_rank(precision, RANK)), precision)
    assert few < 0.2 * diagonal
    less = divergence(covariance(*svi.low_rank(precision, RANK - 1, sweeps=500)), precision)
    assert less > 100 * found  # the wrong twin: one factor too few


def test_the_low_rank_start_is_a_stationary_point_of_the_divergence() -> None:
    precision = precision_of(6)  # more factors than the guide has
    s, factor = svi.low_rank(precision, RANK, sweeps=500)

    def slope(s: Tensor, factor: Tensor) -> float:
        s, factor = s.clone().requires_grad_(), factor.clone().requires_grad_()
        c = covariance(s, factor)
        grads = torch.autograd.grad(0.5 * ((precision @ c).trace() - c.logdet()), (s, factor))
        return max(float(g.abs().max()) for g in grads)

    assert slope(s, factor) < 1e-3
    assert slope(1.1 * s, factor) > 0.1


def test_the_flow_starts_as_the_identity() -> None:
    w = 2 * torch.randn(50, 5)
    start = coupling_spline(5, dtype=torch.float32)
    torch.testing.assert_close(start().transform(w), w, rtol=0, atol=1e-5)
    torch.testing.assert_close(start().log_prob(w), torch.distributions.Normal(0, 1).log_prob(w).sum(1))
    torch.nn.init.normal_(start.transform.transforms[0].hyper[-1].bias)
    assert float((start().transform(w) - w).detach().abs().max()) > 0.1


@pytest.mark.parametrize("guide", ["normal", "low_rank", "full", "flow"])
def test_a_gaussian_posterior_is_met_at_the_first_step(guide: svi.Family) -> None:
    client = tiny("linear", classes=3)  # zero weights: exactly Gaussian
    observed, model = observe(client, 0.3), functools.partial(logistic.model, sigma=0.3)
    exact = logistic.exact_posterior(client, observed, sigma=0.3)
    found = svi.run(model, observed, client, guide=guide, iterations=1, **SETTINGS)
    assert_moments(found.x.reshape(4, 200, -1).astype(np.float64), exact.mean(), exact.sd())
    assert found.converged, found.doubts


@pytest.mark.slow
@pytest.mark.parametrize(("guide", "iterations"), [("normal", 1), ("flow", 1), ("low_rank", 300)])
def test_above_the_limit_no_hessian_is_needed(
    guide: svi.Family, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svi, "DENSE", 3)
    monkeypatch.setattr(whitening, "hessian", None)
    client = tiny("linear", classes=3)
    observed, model = observe(client, 0.3), functools.partial(logistic.model, sigma=0.3)
    exact = logistic.exact_posterior(client, observed, sigma=0.3)
    found = svi.run(model, observed, client, guide=guide, iterations=iterations, **SETTINGS)
    assert_moments(found.x.reshape(4, 200, -1).astype(np.float64), exact.mean(), exact.sd())


def test_a_full_guide_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svi, "DENSE", 3)
    client = tiny("linear", classes=3)
    with pytest.raises(BadInput, match=r"4 latents has 16 numbers: say --inference.guide low_rank"):
        svi.run(functools.partial(logistic.model, sigma=0.3), observe(client, 0.3), client)
