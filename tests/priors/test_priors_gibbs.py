"""Gibbs priors: their energies against loops, and an honest error where they are asked for what nobody knows."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from conftest import batch_of, own, tiny
from scenes import known
from torch import Tensor, nn

from pplleak import density, programs
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.priors import anomaly
from pplleak.priors.batchnorm import batchnorm
from pplleak.priors.tv import TotalVariation
from pplleak.priors.uniform import Box
from pplleak.priors.vae import fit as fit_vae
from pplleak.studies.attack.attack import believe


def looped(x: Tensor, isotropic: bool, smoothing: float) -> float:
    """Total variation of one batch (batch, channels, rows, columns), pixel by pixel."""
    rows, columns = x.shape[-2:]
    total = 0.0
    for image in x.flatten(0, 1):
        for i, j in itertools.product(range(rows), range(columns)):
            right = float(image[i, j + 1] - image[i, j]) if j + 1 < columns else 0.0
            down = float(image[i + 1, j] - image[i, j]) if i + 1 < rows else 0.0
            if isotropic:
                total += math.sqrt(right**2 + down**2 + smoothing**2) - smoothing
            else:
                total += sum(math.sqrt(d**2 + smoothing**2) - smoothing for d in (right, down))
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.05])
@pytest.mark.parametrize("isotropic", [True, False])
def test_total_variation_equals_the_loop_over_pixels(isotropic: bool, smoothing: float) -> None:
    x = torch.rand(3, 2, 2, 3, 4, dtype=torch.float64)  # three chains of two images
    found = TotalVariation(1.7, isotropic=isotropic, smoothing=smoothing).energy(x)
    expected = torch.tensor([1.7 * looped(chain, isotropic, smoothing) for chain in x], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    twin = TotalVariation(1.7, isotropic=not isotropic, smoothing=smoothing).energy(x)
    assert not torch.allclose(twin, expected, rtol=1e-3)


@pytest.mark.parametrize("isotropic", [True, False])
def test_an_even_image_has_no_variation_and_a_finite_gradient(isotropic: bool) -> None:
    x = torch.full((1, 1, 3, 3), 0.4, requires_grad=True)
    energy = TotalVariation(1.0, isotropic=isotropic).energy(x)
    assert float(energy.detach()) == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(energy, x)
    assert bool(gradient.isfinite().all())


def test_total_variation_can_be_neither_sampled_nor_normalised_and_says_so() -> None:
    prior = TotalVariation()
    with pytest.raises(BadInput, match=r"only up to its normaliser.*not sampled from.*gmrf"):
        prior.sample()
    with pytest.raises(BadInput, match=r"no log-density of its own.*gmrf"):
        prior.log_prob(torch.rand(1, 1, 2, 2))


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"weight": -1.0}, {"smoothing": -0.1}])
def test_beliefs_that_are_no_total_variation_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        TotalVariation(**wrong)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="channels, rows, columns"):
        TotalVariation().energy(torch.rand(3, 4))


def test_a_factor_is_tempered_with_the_likelihood_for_starting_points_know_nothing_of_it() -> None:
    """At temperature 0 stands the base that `sample_prior` draws from; at 1 the posterior, total variation included."""
    client = tiny()
    x, y = batch_of(client)
    with torch.no_grad():
        observed = Observation(client.update(x, y).materialise(), labels=y)
    model = believe(programs.load("models", "optimal"), known(client, observed, sigma=0.3), {"prior": "tv:weight=2.0"})
    flat = believe(programs.load("models", "dlg"), known(client, observed, sigma=0.3))
    tv, dlg = (density.build(m, client, observed) for m in (model, flat))
    z = tv.sample_prior(6)
    torch.testing.assert_close(tv(z, temperature=0.0), dlg(z, temperature=0.0))
    images = tv.constrain(z)[0]["x"]
    energy = TotalVariation(2.0, smoothing=0.01).energy(images).double()
    torch.testing.assert_close(tv(z), dlg(z) - energy, rtol=1e-9, atol=1e-9)
    assert float(energy.min()) > 0.01


@pytest.mark.slow
def test_an_anomaly_score_equals_the_loop_over_images_and_counts_total_variation_beside_it() -> None:
    torch.manual_seed(0)
    public = torch.rand(40, 1, 1, 1).expand(40, 1, 3, 3).clone()  # images without any variation
    vae = fit_vae(public, latents=2, hidden=16, epochs=400)
    made = anomaly.OnBox(Box((1, 3, 3)), vae, 3.0, TotalVariation(0.5))
    x = torch.rand(4, 2, 1, 3, 3)
    expected = []
    for chain in x:
        total = looped(chain, False, 0.0) * 0.5
        for image in chain:
            seen = vae.decoder(vae.encoder(image.reshape(1, 9))[:, :2])[0]
            total += 3.0 * sum((float(a) - float(b)) ** 2 for a, b in zip(image.flatten(), seen, strict=True))
        expected.append(total)
    assert made.energy(x).tolist() == pytest.approx(expected, rel=1e-4)
    alone = replace(made, variation=None)
    even, other = (alone.energy(v) for v in (public[:8, None], x.flatten(0, 1)[:, None]))
    assert float(even.max()) < float(other.min())
    assert not hasattr(made, "log_prob") and not hasattr(made, "draw")
    with pytest.raises(BadInput, match="weight"):
        replace(made, weight=0.0)


def normed() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    )


def test_batchnorm_energy_equals_the_loop_over_chains_and_layers() -> None:
    network = own(lambda: normed().eval(), (2, 3, 3)).network
    x = torch.rand(4, 5, 2, 3, 3, dtype=torch.float64)
    found = batchnorm(network, 1.3).energy(x)
    network = network.eval()
    expected = []
    for batch in x:
        total, first, second = 0.0, network[0], network[2]  # type: ignore[index]
        for layer, seen in ((first, batch), (second, network[1](first(batch)))):  # type: ignore[index]
            for c in range(seen.shape[1]):
                values = seen[:, c].flatten()
                mean, variance = float(values.mean()), float(((values - values.mean()) ** 2).mean())
                total += (mean - float(layer.running_mean[c])) ** 2 + (variance - float(layer.running_var[c])) ** 2
        expected.append(1.3 * total)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert batchnorm(network).energy(x[0]).shape == ()


def test_a_batch_whose_statistics_the_network_remembers_has_no_energy_and_others_have() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).double()
    x = torch.rand(6, 2, 2, 2, dtype=torch.float64)
    network[0].running_mean.copy_(x.mean((0, 2, 3)))  # type: ignore[union-attr, operator]
    network[0].running_var.copy_(x.var((0, 2, 3), correction=0))  # type: ignore[union-attr, operator]
    prior = batchnorm(network)
    assert float(prior.energy(x)) == pytest.approx(0, abs=1e-20)
    assert float(prior.energy(x + 0.1)) == pytest.approx(2 * 0.1**2, rel=1e-9)


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), nn.BatchNorm2d(1, track_running_stats=False)],
    ids=["no BatchNorm", "no statistics"],
)
def test_a_network_that_remembers_nothing_is_refused(network: nn.Module) -> None:
    with pytest.raises(BadInput, match="no BatchNorm layer with running statistics"):
        batchnorm(network)
