"""HMC where the Hessian is too large to be formed: whitened by low rank plus the identity, and as exact."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from conftest import LIMIT, misfit, observe, tiny, wrong_twins

from pplleak import density
from pplleak.density import low_rank, whitening
from pplleak.errors import BadInput
from pplleak.inference import hmc, laplace
from pplleak.models import logistic

SHAPE = (1, 6, 6)
SIGMA = 0.1


@pytest.fixture()
def target(monkeypatch: pytest.MonkeyPatch) -> density.Density:
    """A posterior that is exactly Gaussian, of 36 latents, behind an inference for which 20 are too many."""
    monkeypatch.setattr(whitening, "WIDEST", 20)
    monkeypatch.setattr(hmc, "WIDEST", 20)
    client = tiny("linear", SHAPE, classes=3, dtype="float64")  # zero weights
    return density.build(functools.partial(logistic.model, sigma=SIGMA), client, observe(client, SIGMA))


@pytest.mark.slow
def test_the_fit_keeps_the_steepest_directions_and_the_mean_of_the_others(target: density.Density) -> None:
    z = torch.zeros(target.dim, dtype=torch.float64)
    h = whitening.hessian(target, z)
    values = torch.linalg.eigvalsh(h)
    found = low_rank.fit(target, z, rank=5)
    torch.testing.assert_close(found.along, values[-5:].rsqrt(), rtol=1e-6, atol=0)
    identity = torch.eye(target.dim, dtype=torch.float64)
    root = (found.decode(identity) - found.mode).mT
    assert found.log_det == pytest.approx(float(torch.linalg.slogdet(root)[1]), rel=1e-9)
    torch.testing.assert_close(root.mT @ h @ root @ found.directions, found.directions, rtol=1e-6, atol=1e-8)
    w = torch.randn(3, target.dim, dtype=torch.float64)
    wider = found.widened(torch.linspace(0.5, 2, target.dim, dtype=torch.float64))
    for base in (found, wider):
        torch.testing.assert_close(base.encode(base.decode(w)), w)
        inner = base.under(target.recorded(3))
        leaf = w.clone().requires_grad_()
        (slope,) = torch.autograd.grad(target(base.decode(leaf)).sum(), leaf)
        torch.testing.assert_close(inner(w)[1], slope, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_its_draws_are_those_of_the_posterior(target: density.Density) -> None:
    observed, client = target.observed, target.client
    model = functools.partial(logistic.model, sigma=SIGMA)
    exact = logistic.exact_posterior(client, observed, sigma=SIGMA)
    found = hmc.run(model, observed, client, seed=0, chains=32, draws=60, warmup=60, starts=2, steps=60)
    assert found.attrs["log_evidence"] is None
    draws = found.x.reshape(32, 60, -1).astype(np.float64)
    assert misfit(draws, exact.mean(), exact.sd()) <= LIMIT
    for name, twin in wrong_twins(draws).items():
        assert misfit(twin, exact.mean(), exact.sd()) > LIMIT, f"the check has no power: it accepts {name}"


def test_an_inference_that_needs_the_whole_curvature_says_so(target: density.Density) -> None:
    with pytest.raises(BadInput, match="the curvature in all of 36 latents, a matrix of their square: take map"):
        laplace.run(functools.partial(logistic.model, sigma=SIGMA), target.observed, target.client)
