"""Learned compression: what is trained, what its code keeps, and what it cannot have made."""

from __future__ import annotations

import functools

import pytest
import torch
from channel_cases import SIGMA, coder
from conftest import batch_of, tiny
from scenes import from_data
from torch import Tensor

from pplleak import channels, data
from pplleak.channels import _simulated, autoencoded
from pplleak.errors import BadInput
from pplleak.posterior import metrics
from pplleak.settings import Named
from pplleak.studies.attack import attack


def made(code: int = 4, simulated: int = 60, **more: float) -> Named:
    return channels.check(Named("autoencoded", {"sigma": SIGMA, "code": code, "simulated": simulated, **more}))


PUBLIC = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(1))


def test_what_is_decoded_holds_the_code() -> None:
    known = coder(30)
    c = torch.randn(5, known.code, dtype=torch.float64)
    torch.testing.assert_close(known.coordinates(known.decode(c))[:, : known.code], c, rtol=1e-12, atol=1e-12)
    again = known.encode(known.decode(c))  # the encoder is another map than that
    assert not torch.allclose(again, c, rtol=1e-2)


def curved(count: int, seed: int) -> Tensor:
    """Updates (count, 12) on a surface that two numbers tell, of which no plane holds more than two thirds."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    turned = torch.linalg.qr(torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9)))[0]
    return 0.3 + torch.cat([t, t.square() - 1], 1) @ turned.mT


def test_it_leaves_less_of_held_out_updates_than_principal_components_where_these_are_not_enough() -> None:
    found, held = autoencoded.trained(curved(1000, 0), 2), curved(300, 1)

    def missed(decoded: Tensor) -> float:
        return float((held - decoded).square().sum() / (held - found.mean).square().sum())

    linear = found.mean + found.coordinates(held)[:, :2] @ found.basis[:, :2].mT
    assert missed(found.decode(found.encode(held))) < 0.8 * missed(linear)
    assert found.code == 2 and found.basis.shape == (12, 4)


def test_updates_that_a_code_can_hold_are_kept_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    few = 1 + torch.randn(50, 3, dtype=torch.float64, generator=generator) @ torch.randn(3, 20, dtype=torch.float64)
    found = autoencoded.trained(few, 5)  # it has three directions, and no more
    assert found.code == found.basis.shape[1] == 3
    torch.testing.assert_close(found.decode(found.encode(few)), few)
    fewer = autoencoded.trained(few, 2)
    assert not torch.allclose(fewer.decode(fewer.encode(few)), few, rtol=1e-2)


def test_an_autoencoder_is_that_of_the_weights_as_they_are() -> None:
    client, named = tiny(), made()

    def used() -> autoencoded.Autoencoder:
        law = channels.make(named, client.update(*batch_of(client)), client, 1, PUBLIC)
        assert isinstance(law, channels.Autoencoded)
        return law.coder

    first = used()
    assert used() is first  # a model asks at every step
    with torch.no_grad():
        next(iter(client.parameters.values())).add_(0.1)  # a step of a training
    assert not torch.allclose(used().mean, first.mean, rtol=1e-3)
    afresh = autoencoded.trained(_simulated.updates(client, PUBLIC, 1, 60).double(), 4)
    assert torch.equal(used().mean, afresh.mean) and torch.equal(used().encoder[2], afresh.encoder[2])


def test_what_it_cannot_have_made_is_refused_in_one_line() -> None:
    client = tiny()
    u = client.update(*batch_of(client))
    law = channels.make(made(), u, client, 1, PUBLIC)
    assert law.log_prob(law.sample()).isfinite()
    other = channels.make(made(code=3), u, client, 1, PUBLIC)
    for g in (u.materialise(), channels.Gaussian(u, SIGMA).sample(), other.sample()):
        with pytest.raises(BadInput, match="no code of 4 numbers is decoded to the observation") as refused:
            law.log_prob(g)
        assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match="public images"):
        channels.make(made(), u, client, 1, None)
    with pytest.raises(BadInput, match="simulated must be more than the code's 60 numbers, not 60"):
        made(code=60)
    with pytest.raises(BadInput, match="updates of 7 entries"):
        channels.Autoencoded(u, SIGMA, coder=coder(7))


@functools.cache
def found(protection: str, believed: str) -> float:
    """PSNR of the MAP on one digit of the embedded data."""
    channel = Named.parse(protection)
    target = from_data(channel=channel.name, channel_settings=channel.settings, sigma=1e-3, index=4)
    posterior = attack.attack(target, "optimal", "map", settings={"steps": 400, "starts": 4},
                              beliefs={"channel": believed} if believed else {})  # fmt: skip
    assert target.truth is not None
    return float(metrics.psnr(posterior.mode, target.truth.numpy())[0])


@pytest.mark.slow
def test_who_knows_the_code_sees_more_than_who_takes_it_for_noise_and_less_than_of_the_whole_gradient() -> None:
    whole = found("gaussian", "")
    learnt = "autoencoded:simulated=1000"  # enough that its encoder and decoder are curved
    knowing, ignorant = found(learnt, ""), found(learnt, "gaussian")
    assert whole > knowing + 3 and knowing > ignorant + 3
    mean = data.public("digits").x.mean(0)
    target = from_data(index=4)
    assert target.truth is not None
    assert knowing > float(metrics.psnr(mean[None].numpy(), target.truth.numpy())[0])  # more than a guess
