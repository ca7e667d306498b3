"""Clients that compute in half precision: what they round off is the noise that their observation says."""

from __future__ import annotations

import functools
from dataclasses import replace

import pyro
import pytest
import torch
from command_line import one_line
from torch import Tensor

from pplleak import channels, density
from pplleak.density.search import peaks
from pplleak.errors import BadInput
from pplleak.federation import half
from pplleak.federation.observation import Observation
from pplleak.federation.protection import QUIET, Protection
from pplleak.federation.scenario import Scenario, client_of, observe
from pplleak.models import optimal
from pplleak.posterior import fit_words
from pplleak.posterior.fit import Fit
from pplleak.posterior.metrics import psnr
from pplleak.posterior.misfit import Misfit
from pplleak.settings import Named

NETWORKS = {
    "mlp": Named("mlp", {"widths": (32,), "activation": "gelu"}),
    "lenet": Named("lenet"),
    "resnet20": Named("resnet20", {"activation": "silu"}),
}


def shared(network: str, dtype: str, index: int = 0, batch_size: int = 1, protection: str = "none") -> Observation:
    return observe(
        Scenario(network=NETWORKS[network], protection=protection, dtype=dtype, index=index, batch_size=batch_size)  # type: ignore[arg-type]
    )


def at(observed: Observation, x: Tensor, believed: Observation, bent: int = 0) -> Fit:
    """The fit at images, to an adversary who believes in another's client and channel."""
    assert believed.protection.channel is not None and observed.labels is not None
    y = observed.labels
    update = believed.client.update(x.expand(2, *x.shape), y.expand(2, *y.shape))
    law = channels.make(believed.protection.channel, update, believed.client, len(y), None)
    with torch.no_grad():
        made = Misfit(replace(believed, g=observed.g), [law], bent)
        return Fit(**made.misfit(), **made.scale(), **made.bias())


def at_truth(observed: Observation, believed: Observation) -> Fit:
    assert observed.truth is not None
    return at(observed, observed.truth, believed)


def doubted(fit: Fit) -> bool:
    return bool(fit_words.doubts(fit, 1))


def of_one_sigma(observed: Observation, sigma: float | None) -> Observation:
    return replace(observed, protection=Protection(channel=Named("gaussian", {"sigma": sigma})))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_truth_of_a_half_client_is_not_doubted_and_wrong_twins_are(network: str, dtype: str) -> None:
    quiet, truths = 0, 10 if network != "resnet20" else 4
    bent = client_of(Scenario(network=NETWORKS[network].with_(activation="tanh"), dtype=dtype))  # type: ignore[arg-type]
    for index in range(truths):
        batch_size = 1 + 2 * (index % 2)
        observed = shared(network, dtype, index, batch_size)
        assert observed.client.dtype == observed.g.dtype == torch.float32 and observed.provenance["dtype"] == dtype
        weights = next(iter(observed.client.parameters.values()))
        assert torch.equal(weights, weights.to(getattr(torch, dtype)).float())
        quiet += not doubted(at_truth(observed, observed))
        # the twins: no rounding; one width for all; another network; another loss
        assert doubted(at_truth(observed, of_one_sigma(observed, QUIET)))
        assert doubted(at_truth(observed, of_one_sigma(observed, observed.sigma)))
        assert doubted(at_truth(observed, replace(observed, client=bent)))
        smoothed = replace(observed.client, loss="cross_entropy:label_smoothing=0.05")
        assert doubted(at_truth(observed, replace(observed, client=smoothed)))
    assert quiet >= truths - 1


def test_noise_of_the_channel_and_rounding_add_up_and_other_channels_are_refused() -> None:
    plain = shared("mlp", "bfloat16").sigma
    noisy = shared("mlp", "bfloat16", protection="gaussian:sigma=0.0005")
    assert plain is not None and noisy.sigma is not None and plain < 5e-4
    assert noisy.sigma == pytest.approx((0.0005**2 + plain**2) ** 0.5, rel=0.01)
    assert noisy.protection.is_channel("rounded") and not doubted(at_truth(noisy, noisy))
    hidden = shared("mlp", "bfloat16", protection="gaussian:sigma=0.1")
    assert hidden.protection.is_channel("gaussian") and hidden.sigma == pytest.approx(0.1, rel=1e-3)
    laplace = shared("mlp", "bfloat16", protection="laplace:sigma=0.0005")
    assert laplace.protection.is_channel("laplace") and laplace.sigma == pytest.approx(noisy.sigma, rel=0.05)
    found = half.Rounding(torch.zeros(4), torch.ones(4))
    with pytest.raises(BadInput, match="no noise of a known σ"):
        half.noisier(
            Scenario(protection="dpsgd:noise_multiplier=1,clip=1").protection.filled(),
            noisy.client,
            noisy.g,
            found,  # type: ignore[arg-type]
        )


@pytest.mark.slow
def test_an_attack_on_a_bfloat16_client_is_explained_by_its_rounding() -> None:
    """A MAP behind a client's rounding is near the truth and fits; who believes in another network finds no image that
    does."""
    observed = shared("mlp", "bfloat16")
    assert observed.labels is not None and observed.truth is not None and observed.protection.channel is not None
    channel, fits = observed.protection.channel, []
    for activation in ("gelu", "tanh"):
        network = NETWORKS["mlp"].with_(activation=activation)
        client = client_of(Scenario(network=network, dtype="bfloat16"))
        believed = functools.partial(optimal.model, channel=channel, sigma=observed.sigma, reference=observed.public)
        pyro.set_rng_seed(0)
        target = density.build(believed, client, observed)
        x = target.images(peaks(target, starts=2, steps=200)[0][None])[0][0]
        fits.append(at(observed, x, replace(observed, client=client), bent=target.dim))
        if activation == "gelu":
            assert float(psnr(x.numpy(), observed.truth.numpy()).mean()) > 40
    assert not doubted(fits[0]) and doubted(fits[1])


def test_training_rounds_are_not_in_half_precision(capsys: pytest.CaptureFixture[str]) -> None:
    one_line(["train", "--dtype", "float16"], capsys, "float32 or float64")
