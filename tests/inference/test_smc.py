"""SMC's parts: unbiased resampling, the temperature it chooses, and the evidence against the exact one."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from pplleak import channels
from pplleak.client import Client, networks, seeded
from pplleak.density import marginal
from pplleak.density.resampling import next_temperature, resample
from pplleak.federation.observation import Observation
from pplleak.inference import smc
from pplleak.models import logistic

SHAPE = (1, 2, 2)
SIGMA = 0.3


@pytest.mark.parametrize("labels", ["known", "unknown"])
def test_the_evidence_is_the_exact_one(labels: str) -> None:
    network = seeded(lambda: networks.get("linear")(SHAPE, 2, zero=False), 0).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5)
    client = Client(network, SHAPE, 2)
    torch.manual_seed(0)
    x, y = 0.5 + 0.3 * torch.randn(1, *SHAPE, dtype=torch.float64), torch.tensor([1])
    observed = Observation(channels.Gaussian(client.update(x, y), SIGMA).sample(), 1, y if labels == "known" else None)
    exact = logistic.exact_posterior(client, observed, sigma=SIGMA)
    model = functools.partial(logistic.model, sigma=SIGMA)
    found = smc.run(model, observed, client, seed=0, islands=32, particles=64, refresh=1, steps=5)
    error = found.attrs["log_evidence"] - exact.log_evidence
    assert found.attrs["log_evidence_se"] < 0.1, "too noisy an estimate to test anything"
    assert abs(error) < 5 * found.attrs["log_evidence_se"]
    # the wrong twin: an evidence that forgets that the labels are unknown, or counts them twice
    twin = error + (-1 if labels == "known" else 1) * math.log(2)
    assert abs(twin) > 5 * found.attrs["log_evidence_se"]


def test_resampling_gives_every_particle_its_weight_in_offspring() -> None:
    torch.manual_seed(0)
    log_w = torch.randn(1, 7, dtype=torch.float64).repeat(20_000, 1)
    ancestors = resample(log_w)
    count = torch.zeros(20_000, 7, dtype=torch.float64).scatter_add_(1, ancestors, torch.ones_like(log_w))
    expected = 7 * log_w[0].softmax(0)
    error = (count.mean(0) - expected) / (count.std(0) / math.sqrt(len(count))).clamp(min=1e-9)
    assert float(error.abs().max()) < 5
    assert (count - expected).abs().max() < 1, "systematic resampling rounds up or down, never further"
    twin = (count.mean(0) - torch.ones(7)) / (count.std(0) / math.sqrt(len(count))).clamp(min=1e-9)
    assert float(twin.abs().max()) > 5


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.9])
def test_a_step_in_temperature_keeps_the_effective_fraction_it_was_told(keep: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prior = torch.randn(3, 200, generator=generator, dtype=torch.float64)
    likelihood = -1e4 * torch.rand(3, 200, generator=generator, dtype=torch.float64)  # 3 labels, 200 particles
    beta, log_w = next_temperature(smc.log_weights(prior, likelihood, 0.0, 2), 0.0, keep)
    assert 0 < beta < 1
    torch.testing.assert_close(log_w.flatten(), marginal(prior, likelihood, beta) - marginal(prior, likelihood, 0.0))
    kept = (1 / log_w.softmax(1).square().sum(1) / 100).min()
    assert keep <= float(kept) < keep + 0.02


def test_a_step_that_can_reach_the_posterior_does() -> None:
    prior, likelihood = torch.zeros(8, dtype=torch.float64), torch.linspace(-0.1, 0.1, 8, dtype=torch.float64)
    assert next_temperature(smc.log_weights(prior, likelihood, 0.9, 2), 0.9, 0.5)[0] == 1.0
