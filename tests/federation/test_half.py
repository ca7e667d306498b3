"""Clients that compute in half precision: what they round off is the noise that their observation says."""

from __future__ import annotations

import functools

import pyro
import pytest
import torch
from command_line import one_line

from pplleak import density
from pplleak.density.search import peaks
from pplleak.errors import BadInput
from pplleak.federation import half
from pplleak.federation.protection import QUIET
from pplleak.federation.scenario import Scenario, observe
from pplleak.models import optimal
from pplleak.posterior.metrics import psnr
from pplleak.settings import Named

NETWORKS = {"mlp": Named("mlp", {"widths": (32,), "activation": "gelu"}), "lenet": Named("lenet")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_measured_rounding_is_that_of_the_private_batch(network: str, dtype: str) -> None:
    for batch_size in (1, 3):
        made = Scenario(network=NETWORKS[network], protection="none", dtype=dtype, batch_size=batch_size)  # type: ignore[arg-type]
        observed = observe(made)
        assert observed.sigma is not None and observed.client.dtype == observed.g.dtype == torch.float32
        assert observed.labels is not None and observed.truth is not None
        with torch.no_grad():
            off = (observed.g - observed.client.update(observed.truth, observed.labels).materialise()).double()
        error = float(off.square().mean().sqrt())
        assert 1 / 4 < error / observed.sigma < 4
        assert error > 4 * QUIET  # what an adversary would believe in who knows of no rounding
        weights = next(iter(observed.client.parameters.values()))
        assert torch.equal(weights, weights.to(getattr(torch, dtype)).float())
    assert observed.provenance["dtype"] == dtype


def test_noise_of_the_channel_and_rounding_add_up_and_other_channels_are_refused() -> None:
    plain = observe(Scenario(protection="none", dtype="bfloat16")).sigma
    noisy = observe(Scenario(protection="gaussian:sigma=0.001", dtype="bfloat16")).sigma
    assert plain is not None and noisy is not None and plain < 5e-4
    assert noisy == pytest.approx((1e-6 + plain**2) ** 0.5, rel=0.01)
    with pytest.raises(BadInput, match="no noise of a known σ"):
        half.noisier(Scenario(protection="dpsgd:noise_multiplier=1,clip=1").protection.filled(), 0.1)


@pytest.mark.slow
def test_an_attack_on_a_bfloat16_client_is_explained_by_its_rounding() -> None:
    observed = observe(Scenario(network=NETWORKS["mlp"], protection="none", dtype="bfloat16"))
    assert observed.labels is not None and observed.truth is not None and observed.sigma is not None
    believed = functools.partial(optimal.model, sigma=observed.sigma, reference=observed.public)
    pyro.set_rng_seed(0)
    target = density.build(believed, observed.client, observed)
    x = target.images(peaks(target, starts=2, steps=200)[0][None])[0]
    assert float(psnr(x[0].numpy(), observed.truth.numpy()).mean()) > 40
    with torch.no_grad():
        square = float(observed.client.update(x, observed.labels[None]).sqdist(observed.g)) / len(observed.g)
    assert 0.1 < square / observed.sigma**2 < 10
    assert square / QUIET**2 > 1000


def test_training_rounds_are_not_in_half_precision(capsys: pytest.CaptureFixture[str]) -> None:
    one_line(["train", "--dtype", "float16"], capsys, "float32 or float64")
