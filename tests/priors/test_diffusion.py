"""The prior `diffusion`: the density of what it draws, its inverse, and what its denoiser is worth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pplleak import data, memory
from pplleak.cli import prior as prior_command
from pplleak.errors import BadInput
from pplleak.priors import _comparison as comparison
from pplleak.priors import _invertible as invertible
from pplleak.priors import _store as store
from pplleak.priors import diffusion
from pplleak.priors.diffusion import Diffusion, fit, of_levels, restore
from pplleak.priors.gaussian import fit_gaussian, standard_normal_log_prob
from pplleak.settings import Named

SHAPE = (1, 4, 4)


def tiny(levels: int = 3, strength: float = 0.2) -> Diffusion:
    """A denoiser of random weights, in float64; strength: how far it is from the Gaussian's, which has 0."""
    torch.manual_seed(0)
    images = torch.rand(50, *SHAPE, dtype=torch.float64)
    images = (images + images.roll(1, -1)) / 2
    made = fit(images, levels=levels, hidden=4, epochs=1)
    with torch.no_grad():
        for p in made.network.leave.parameters():
            p.normal_().mul_(strength)
    own = restore(made.tensors(), SHAPE, torch.float64)
    return Diffusion(fit_gaussian(images), own.network, own.sigmas)  # eigenvectors to the last digit


def normals(count: int) -> Tensor:
    return torch.randn(count, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_density_is_that_of_the_whole_map_by_autograd() -> None:
    prior, z = tiny(), normals(2)
    found = prior.log_prob(prior.decode(z), exact=True)
    jacobians = [torch.autograd.functional.jacobian(lambda v: prior.decode(v[None])[0].flatten(), row) for row in z]
    turned = torch.stack([j.slogdet()[1] for j in jacobians])
    torch.testing.assert_close(found, standard_normal_log_prob(z) - turned, rtol=1e-8, atol=1e-6)
    wrong = standard_normal_log_prob(z) - prior.base.log_det  # the steps are taken to keep volumes
    assert float((found - wrong).abs().min()) > 0.01


def test_an_image_is_found_again_from_its_coordinates() -> None:
    prior, z = tiny(), normals(6)
    x = prior.decode(z[None])[0]  # a chain of a batch
    torch.testing.assert_close(prior.encode(x), z, rtol=0, atol=1e-9)
    torch.testing.assert_close(prior.decode(prior.encode(x)), x, rtol=0, atol=1e-10)
    assert float((prior.base.encode(x) - z).abs().amax(-1).min()) > 1e-3  # the Gaussian's own are others


@pytest.mark.parametrize("levels", [1, 7])
def test_without_a_velocity_it_is_the_gaussian(levels: int) -> None:
    prior, z = tiny(levels, strength=0.0), normals(5)
    x = prior.base.decode(z)
    torch.testing.assert_close(prior.decode(z), x, rtol=0, atol=0)
    torch.testing.assert_close(prior.log_prob(x), prior.base.log_prob(x), rtol=1e-12, atol=1e-10)
    bent = tiny(levels)
    assert float((bent.log_prob(x) - bent.base.log_prob(x)).abs().max()) > 0.01


def test_an_attack_may_take_other_levels_than_were_fitted() -> None:
    made = tiny(3)
    fewer, same = of_levels(made, 2), of_levels(made, 3)
    torch.testing.assert_close(same.sigmas, made.sigmas)
    assert len(fewer.sigmas) == 3 and fewer.network is made.network
    torch.testing.assert_close(fewer.sigmas[[0, -1]], made.sigmas[[0, -1]])
    z = normals(2)
    assert float((fewer.decode(z) - made.decode(z)).abs().max()) > 1e-4
    for wrong in (-1, 201):
        with pytest.raises(BadInput, match="levels"):
            of_levels(made, wrong)


def test_wrong_levels_are_refused_before_a_fit_of_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "trained", lambda *_: pytest.fail("it was fitted"))
    with pytest.raises(BadInput, match="1 to 200 levels, not 201"):
        diffusion.prior(tiny().base.mean, levels=201)  # type: ignore[arg-type]


def test_estimates_of_a_determinant_are_right_on_average() -> None:
    prior = tiny(strength=0.5)
    u = normals(1).repeat(1500, 1)

    def step(v: Tensor) -> Tensor:
        return prior.step(1, v)

    exact = float(invertible.log_det(step, u[:1], exact=True))
    torch.manual_seed(0)
    drawn = invertible.log_det(step, u, exact=False)
    error = float(drawn.std()) / math.sqrt(len(drawn))
    assert abs(float(drawn.mean()) - exact) < 4 * error
    trace = float(invertible.jacobian(step, u[:1])[0].trace()) - 16  # log |det J| to first order of J − I
    assert abs(float(drawn.mean()) - trace) > 5 * error


def test_an_inverse_that_there_is_not_is_not_made_up() -> None:
    found = invertible.inverse(torch.square, torch.tensor([[0.25], [-1.0], [0.81]], dtype=torch.float64))
    torch.testing.assert_close(found[[0, 2]].square(), torch.tensor([[0.25], [0.81]], dtype=torch.float64))
    assert bool(found[1].isnan().all())


class Folding(nn.Module):
    """A velocity whose steps fold: u ↦ u − c u², which is nowhere above 1 / 4c."""

    def forward(self, seen: Tensor, band: Tensor, t: Tensor) -> Tensor:
        return 4 * band.square()


def test_an_image_that_is_never_drawn_has_density_0_and_is_counted() -> None:
    bent = tiny(1)
    prior = Diffusion(bent.base, Folding(), bent.sigmas)  # type: ignore[arg-type]
    x = torch.cat([prior.decode(0.05 * normals(2)), torch.full((1, *SHAPE), -9.0), torch.full((1, *SHAPE), 9.0)])
    found = prior.log_prob(x)
    assert bool(found[:2].isfinite().all()) and not bool(found.isnan().any())
    impossible = int((found == -math.inf).sum())
    assert impossible >= 1
    row = comparison.row(comparison.Score(Named("diffusion"), found, None, False, 0.0), torch.zeros(4), 16)
    assert row["impossible"] == impossible and f"{impossible} images" in comparison.said(row)[0]
    score = prior_command._score(found)
    assert score == {"nats": None, "error": None, "images": 4, "impossible": impossible}
    assert prior_command._score(found[:2])["nats"] == pytest.approx(float(found[:2].mean()))


def test_a_file_of_other_sizes_is_refused_before_it_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = tiny().tensors()
    restore(tensors, SHAPE, torch.float64)
    for name, wrong, said in (
        ("network.enter.weight", torch.zeros(5, 8, 3, 3), "not those of a diffusion"),
        ("network.enter.weight", torch.zeros(()), "not those of a diffusion"),
        ("network.leave.bias", torch.zeros(3), "not those of a diffusion"),
        ("network.more", torch.zeros(3), "not those of a diffusion"),
        ("base.mean", torch.zeros(15), "other shapes"),
        ("sigmas", torch.tensor([0.1, 0.2]), "do not fall"),
        ("sigmas", torch.tensor([math.nan, 0.2]), "do not fall"),
        ("sigmas", torch.tensor([0.2]), "no noise levels"),
        ("sigmas", torch.arange(300, 0, -1.0), "more than 200"),
    ):
        with pytest.raises(BadInput, match=said):
            restore({**tensors, name: wrong}, SHAPE, torch.float64)
    monkeypatch.setattr(memory, "available", lambda *a: 100)
    with pytest.raises(BadInput, match="denoiser of a diffusion prior takes about"):
        restore(tensors, SHAPE, torch.float64)


def test_settings_that_make_no_diffusion_are_refused() -> None:
    with pytest.raises(BadInput, match="1 to 200 levels, not 201"):
        fit(torch.rand(4, *SHAPE), levels=201)
    with pytest.raises(BadInput, match="takes images"):
        fit(torch.rand(4, 1, 2, 2, 2))


@pytest.mark.slow
def test_a_fitted_denoiser_knows_more_of_new_images_than_its_shuffled_weights() -> None:
    train, held_out = store.split(data.public("digits").x)
    fitted = fit(train, levels=8, hidden=8, steps=500)
    torch.manual_seed(0)
    shuffled = {
        n: t.flatten()[torch.randperm(t.numel())].reshape(t.shape) if n.startswith("network.") else t
        for n, t in fitted.tensors().items()
    }
    held_out = held_out[:60]
    nats, gaussian = fitted.log_prob(held_out), fit_gaussian(train).log_prob(held_out)
    twin = restore(shuffled, fitted.input_shape, torch.float32).log_prob(held_out)
    assert bool(nats.isfinite().all())
    for ahead in (nats - twin.clamp(min=-1e4), nats - gaussian):
        assert float(ahead.mean()) > 4 * float(ahead.std()) / math.sqrt(len(ahead))
