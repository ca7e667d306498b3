"""The numbers behind the channels: Bessel functions, intervals of the normal law, noise, masks; and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import LIMIT, assert_frequencies, batch_of, chains_of, misfit, own, tiny
from scipy.stats import multivariate_t
from torch import Tensor, nn

from pplleak import channels
from pplleak.channels._base import log_interval, noise
from pplleak.channels.directional import log_bessel_i
from pplleak.channels.masked import random_mask
from pplleak.client.factors import Factor
from pplleak.client.update import DenseUpdate
from pplleak.errors import BadInput
from pplleak.settings import Named

SIGMA, RATE = 0.3, 0.4


@pytest.mark.parametrize("order", [0, 0.5, 5, 29.5, 30, 35, 499, 49_999, 499_999])
@pytest.mark.parametrize("ratio", [1e-2, 0.3, 1.0, 4.0, 30.0])
def test_log_bessel_function_is_that_of_arbitrary_precision(order: float, ratio: float) -> None:
    mpmath = pytest.importorskip("mpmath")
    x = ratio * max(order, 1)
    with mpmath.workdps(40):
        # the power series, whose terms are all positive: summed outwards from the largest
        nu, quarter = mpmath.mpf(order), mpmath.mpf(x) ** 2 / 4
        top = int((math.hypot(order, x) - order) / 2)
        first = top * mpmath.log(quarter) - mpmath.loggamma(top + 1) - mpmath.loggamma(top + nu + 1)
        total, up, down, k = mpmath.mpf(1), mpmath.mpf(1), mpmath.mpf(1), 0
        while up > 1e-25 or down > 1e-25:
            k += 1
            up = up * quarter / ((top + k) * (top + k + nu))
            down = down * (top - k + 1) * (top - k + 1 + nu) / quarter if k <= top else mpmath.mpf(0)
            total += up + down
        expected = float(nu * mpmath.log(mpmath.mpf(x) / 2) + first + mpmath.log(total))
    assert log_bessel_i(order, x) == pytest.approx(expected, rel=1e-11, abs=1e-9)


def test_log_bessel_function_of_a_small_argument_does_not_underflow() -> None:
    found = log_bessel_i(29.5, 1e-10)  # (x/2)^ν / Γ(ν + 1) is 1e-336
    assert found == pytest.approx(29.5 * math.log(0.5e-10) - math.lgamma(30.5), rel=1e-14)


@pytest.mark.slow
def test_log_probability_of_an_interval_is_accurate_in_both_tails() -> None:
    mpmath = pytest.importorskip("mpmath")
    for low, width in ((-60.0, 1e-3), (-9.0, 2.0), (-1.0, 2.5), (-0.5, 1e-6), (8.5, 1.0), (40.0, 0.1), (-1e3, 1.0)):
        with mpmath.workdps(800):
            a, b = mpmath.mpf(low), mpmath.mpf(low + width)
            if b < 0:  # erfc is 2 less a tiny number there
                a, b = -b, -a
            root = mpmath.sqrt(2)
            value = (mpmath.erfc(a / root) - mpmath.erfc(b / root)) / 2
            expected = float(mpmath.log(value))
        found = log_interval(torch.tensor(low, dtype=torch.float64), torch.tensor(low + width, dtype=torch.float64))
        assert found.item() == pytest.approx(expected, rel=1e-8), (low, width)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_noise_has_the_standard_deviation_that_it_is_asked_for(kind: channels.Noise) -> None:
    draws = chains_of(noise(kind, torch.zeros(20_000, 3, dtype=torch.float64), SIGMA))
    assert misfit(draws, np.zeros(3), np.full(3, SIGMA)) <= LIMIT
    assert misfit(draws, np.zeros(3), np.full(3, 1.1 * SIGMA)) > LIMIT


def test_a_mask_prunes_at_its_rate_and_is_the_same_for_the_same_seed() -> None:
    assert torch.equal(random_mask(1000, RATE, 3), random_mask(1000, RATE, 3))
    assert not torch.equal(random_mask(1000, RATE, 3), random_mask(1000, RATE, 4))
    assert random_mask(1000, 0.0, 0).all()
    assert_frequencies(random_mask(4000, RATE, 1).long().numpy().reshape(4, -1), [RATE, 1 - RATE])


def test_moments_are_those_of_the_simulated_updates() -> None:
    updates = torch.randn(200, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 1
    mean, variance, factor = channels.moments(updates, rank=4)
    torch.testing.assert_close(mean, updates.mean(0))
    torch.testing.assert_close((variance + factor.square().sum(1)), updates.var(0))
    full = channels.moments(updates, rank=5)
    torch.testing.assert_close(full[2] @ full[2].mT + full[1].diag(), updates.mT.cov())
    assert (factor @ factor.mT - updates.mT.cov()).norm() < 0.2 * updates.mT.cov().norm()


def test_a_layers_sigma_is_that_of_its_entries() -> None:
    client = tiny()
    found = client.split(channels.by_layer(client, [0.1, 0.2, 0.3, 0.4]))
    assert [t.unique().tolist() for t in found.values()] == [[0.1], [0.2], [0.3], [0.4]]


def test_one_sigma_a_layer_stays_lazy_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a layer's entries share one σ, its Gram form does, whatever the batch: no ∇W."""
    client = tiny("mlp", (1, 4, 4), widths=(9,))
    x, y = batch_of(client, (2,), 2)
    g = torch.randn(client.update_size, dtype=torch.float64)
    widths = channels.by_layer(client, [0.1, 0.2, 0.3, 0.4])
    expected = torch.distributions.Normal(client.materialised(x, y).materialise(), widths).log_prob(g).sum(-1)

    def refuse(self: Factor) -> Tensor:
        raise AssertionError("materialised")

    monkeypatch.setattr(Factor, "dense", False)  # so small a layer is cheaper materialised
    monkeypatch.setattr(Factor, "weight_gradient", property(refuse))
    torch.testing.assert_close(channels.Weighted(client.update(x, y), widths).log_prob(g), expected)


def test_a_rounded_tensors_width_is_its_own_and_the_layers_stay_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against scipy's t of every tensor; σ is the rms of the widths. The twin has the widths of other tensors."""
    client = tiny("mlp", (1, 4, 4), widths=(9,))
    x, y = batch_of(client, (2,), 2)
    g = torch.randn(client.update_size, dtype=torch.float64)
    u, widths, dof = client.materialised(x, y).materialise(), (1.0, 3.0, 0.5, 2.0), (4.0, 9.0, 1e3, 30.0)
    shares = torch.tensor([s.numel() for s in client.layers.values()], dtype=torch.float64) / client.update_size

    def by_scipy(widths: tuple[float, ...]) -> list[float]:
        rms = float((shares * torch.tensor(widths, dtype=torch.float64).square()).sum().sqrt())
        parts = list(zip(widths, dof, client.slices.values(), strict=True))
        return [
            sum(
                multivariate_t(k[s], (SIGMA * w / rms) ** 2 * np.eye(s.stop - s.start), v).logpdf(g[s])
                for w, v, s in parts
            )
            for k in u.numpy()
        ]

    def refuse(self: Factor) -> Tensor:
        raise AssertionError("materialised")

    monkeypatch.setattr(Factor, "dense", False)
    monkeypatch.setattr(Factor, "weight_gradient", property(refuse))
    made = channels.make(
        Named("rounded", {"sigma": SIGMA, "widths": widths, "dof": dof}), client.update(x, y), client, 2, None
    )
    found = made.log_prob(g).tolist()
    assert found == pytest.approx(by_scipy(widths), rel=1e-10)
    assert found != pytest.approx(by_scipy(widths[::-1]), rel=1e-3)
    assert float(made.spread(g).square().mean()) == pytest.approx(SIGMA**2)  # type: ignore[attr-defined]


# -- mistakes --------------------------------------------------------------------------------------------------------

U = DenseUpdate(torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64))
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "no noise": (lambda: channels.Laplace(U, 0.0), "sigma must be a positive number"),
    "rate of one": (lambda: channels.Pruned(U, SIGMA, rate=1.0), "rate must be at least 0 and below 1"),
    "negative rate": (lambda: channels.Masked(U, SIGMA, rate=-0.1), "rate must be at least 0 and below 1"),
    "rate that is no number": (lambda: channels.TopK(U, SIGMA, rate=math.nan), "rate must be at least 0 and below 1"),
    "clip of zero": (lambda: channels.DPSGD(U, clip=0.0), "clip must be a positive number"),
    "negative multiplier": (lambda: channels.DPSGD(U, noise_multiplier=-1.0), "noise_multiplier must be a positive"),
    "step of zero": (lambda: channels.Quantised(U, SIGMA, step=0.0), "step must be a positive number"),
    "kappa of zero": (lambda: channels.Directional(U, kappa=0.0), "kappa must be a positive number"),
    "no clients": (
        lambda: channels.Aggregated(U, SIGMA, clients=0, mean=torch.ones(3), variance=torch.ones(3)),
        "clients must be at least 1",
    ),
    "sigmas of another network": (lambda: channels.Weighted(U, torch.ones(2)), "sigmas must have one entry"),
    "a sigma of zero": (lambda: channels.Weighted(U, torch.zeros(3)), "sigmas must all be positive"),
    "two sigmas for four layers": (lambda: channels.by_layer(tiny(), (1.0, 1.0)), "2 sigmas for 4 parameters"),
    "signs of another channel": (lambda: channels.Sign(U, SIGMA).log_prob(torch.full((3,), 0.5)), "signs"),
    "levels of another step": (
        lambda: channels.Quantised(U, SIGMA, step=0.1).log_prob(torch.full((3,), 0.15)), "multiples of step"
    ),
    "support of another rate": (lambda: channels.TopK(U, SIGMA, rate=0.7).log_prob(torch.ones(3)), "sends 1 of 3"),
    "a seed that is none": (lambda: channels.Projected(U, SIGMA, matrix_seed=2**70), "matrix_seed must be a whole"),
    "a mask's seed that is none": (lambda: channels.Masked(U, SIGMA, mask_seed=-(2**70)), "mask_seed must be a whole"),
    "measurements of another matrix": (
        lambda: channels.Projected(U, SIGMA, rate=0.6).log_prob(torch.tensor([1.0, 2.0, 4.0])), "1 dimensions that are"
    ),
    "share above one": (lambda: channels.SVT(U, share=1.5), "share must be at most 1"),
    "entries of another share": (
        lambda: channels.SVT(U, share=0.3, replace=False).log_prob(torch.ones(3)), "sends 1 of 3"
    ),
    "unknown order": (lambda: channels.Pruned(U, SIGMA, order="never"), "unknown order 'never'"),  # type: ignore
    "unknown noise": (lambda: channels.Masked(U, SIGMA, noise="pink"), "unknown noise 'pink'"),  # type: ignore
    "moments of one update": (lambda: channels.moments(torch.zeros(1, 3)), "at least 2 simulated updates"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_what_is_no_channel_is_refused_in_one_line(make: Callable[[], object], said: str) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_examples_that_a_network_mixes_are_not_clipped() -> None:
    client = own(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)), (1, 2, 2))
    with pytest.raises(BadInput, match="mixes its batch"):
        channels.require_examples(client, 2)
    channels.require_examples(client, 1)
    channels.require_examples(tiny(), 2)


def test_a_name_stands_for_every_channel_that_settings_say_in_full() -> None:
    said = (
        "aggregated autoencoded directional dpfedavg dpsgd elastic gaussian laplace masked onebit percentile projected"
        " pruned quantised rounded sign svt topk weighted"
    )
    assert list(channels.names()) == said.split()
    for name, line in channels.names().items():
        assert line
        assert channels.get(name).__name__.lower() == name
        assert all(s.help for s in channels.settings(name))
    with pytest.raises(BadInput, match="did you mean pruned"):
        channels.get("prund")


def test_what_no_file_defines_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="Gausian"):
        _ = channels.Gausian
    with pytest.raises(ImportError):
        from pplleak.channels import Gausian  # noqa: F401


def test_a_channel_is_checked_and_made_whole() -> None:
    assert channels.check(Named("gaussian")) == Named("gaussian", {"sigma": 0.1})
    assert channels.check(Named.parse("topk:sigma=0.2")).settings == {"sigma": 0.2, "rate": 0.9}
    assert channels.check(Named("weighted")).settings == {"sigmas": (0.1,)}
    assert channels.check(Named("aggregated")).settings["sigma"] == 0.1
    assert "sigma" not in channels.check(Named("dpsgd")).settings


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("gausian", "unknown channel 'gausian': did you mean gaussian"),
        ("gaussian:rate=0.5", "here: the channel gaussian has no setting 'rate'"),
        ("dpsgd:sigma=1", "here: the channel dpsgd has no sigma: set noise_multiplier and clip"),
        ("gaussian:sigma=-1", "sigma must be a positive number"),
        ("masked:noise=pink", "unknown noise of the channel masked 'pink'"),
        ("topk:rate=high", "here: rate of the channel topk is 'high'"),
    ],
)
def test_a_name_or_setting_that_is_none_is_refused_in_one_line(said: str, refused: str) -> None:
    with pytest.raises(BadInput, match=refused) as caught:
        channels.check(Named.parse(said), "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", channels.names())
def test_a_channel_is_made_for_an_update_by_its_name(name: str) -> None:
    client = tiny()
    x, y = batch_of(client, (), 1)
    update, public = client.update(x, y), torch.rand(20, *client.input_shape)
    made = channels.make(channels.check(Named(name)), update, client, 1, public)
    assert type(made) is channels.get(name)
    assert made.log_prob(made.sample()).isfinite()


def test_a_channel_that_needs_more_than_the_client_has_is_refused() -> None:
    client = own(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)), (1, 2, 2))
    update = DenseUpdate(torch.zeros(1, client.update_size))
    with pytest.raises(BadInput, match="mixes its batch"):
        channels.make(Named("dpsgd"), update, client, 2, None)
    with pytest.raises(BadInput, match="public images"):
        channels.make(Named("aggregated"), update, client, 1, None)


def test_a_lot_divides_the_clipped_sum_and_its_noise_instead_of_the_batch() -> None:
    client = tiny()
    x, y = batch_of(client, size=3)
    with torch.no_grad():
        update = client.update(x, y)
        examples = [client.update(x[k : k + 1], y[k : k + 1]).materialise() for k in range(3)]
    clip, z, lot = 0.5, 0.3, 4
    mean = torch.stack([e * min(1.0, clip / float(e.norm())) for e in examples]).sum(0) / lot
    law = channels.make(Named("dpsgd", {"noise_multiplier": z, "clip": clip, "lot": lot}), update, client, 3, None)
    g = mean + 0.01
    slow = torch.distributions.Normal(mean, z * clip / lot).log_prob(g).sum()
    assert float(law.log_prob(g)) == pytest.approx(float(slow))
    other = channels.make(Named("dpsgd", {"noise_multiplier": z, "clip": clip}), update, client, 3, None)
    assert float(other.log_prob(g)) != pytest.approx(float(slow))  # divided by the batch
    with pytest.raises(BadInput, match="lot"):
        channels.make(Named("dpsgd", {"lot": -1}), update, client, 3, None)
