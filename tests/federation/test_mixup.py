"""Mixup and InstaHide: what is shared, who knows it, and what a public seed leaves of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import batch_of, tiny
from scenes import build_client, from_data, known
from torch import Tensor

from pplleak import data, density, programs
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.defences import mixup
from pplleak.federation.observation import Observation
from pplleak.posterior import metrics
from pplleak.priors.gaussian import fit_gaussian
from pplleak.studies.attack import attack
from pplleak.studies.attack.attack import believe

SIGMA = 0.2


def by_hand(client: Client, x: Tensor, y: Tensor, made: mixup.Draws, *, soft: bool = True) -> Tensor:
    """∇θ (1/B) Σ_b Σ_j λ_bj ℓ(f(x̃_b), y_bj), by plain autograd, pixel signs in [−1, 1]."""
    network = copy.deepcopy(client.network).requires_grad_()
    total = torch.zeros((), dtype=x.dtype)
    for b in range(len(x)):
        images, labels, weights = [x[b], *made.partners[b]], [int(y[b]), *made.labels[b].tolist()], made.weights[b]
        mean = sum(w * (2 * image - 1) for w, image in zip(weights, images, strict=True))
        log_p = network(((made.signs[b] * mean + 1) / 2)[None])[0].log_softmax(-1)
        total = total - sum(w * log_p[k if soft else labels[0]] for w, k in zip(weights, labels, strict=True)) / len(x)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(network.parameters()))])


@pytest.mark.parametrize("signs", [False, True])
def test_it_shares_the_gradient_of_the_mixture_with_mixed_labels(signs: bool) -> None:
    client = build_client("mlp", {"widths": (5,)}, (1, 8, 8), 10, dtype="float64")
    x, y = batch_of(client, size=2)
    asked: dict[str, Any] = {"images": 3, "alpha": 0.7, "signs": signs, "others": "digits"}
    made = mixup.draws(client, 2, **asked, public_seed=5)
    assert made.weights.sum(1).tolist() == pytest.approx([1, 1]) and bool((made.signs == 1).all()) is not signs
    found = mixup.share(client, x, y, **asked, public_seed=5)
    torch.testing.assert_close(found, by_hand(client, x, y, made))
    assert not torch.allclose(found, by_hand(client, x, y, made, soft=False), rtol=1e-2)
    digits = data.private("digits").x.double()
    assert all((digits == p).flatten(1).all(1).any() for p in made.partners.flatten(0, 1))
    torch.manual_seed(0)
    secret = [mixup.share(client, x, y, **asked) for _ in range(2)]
    assert not torch.allclose(*secret, rtol=1e-2)


def test_to_who_knows_it_partners_weights_and_signs_are_latents_and_their_labels_are_summed_out() -> None:
    client = tiny(shape=(1, 2, 2))
    x, y = batch_of(client, size=2)
    g = client.update(x, y).materialise() + 0.1
    public = torch.rand(30, *client.input_shape, generator=torch.Generator().manual_seed(3))
    target = known(client, Observation(g, 2, y), public=public, sigma=SIGMA)
    built = density.build(believe(programs.load("models", "mixup"), target, {"signs": True}), client, target)
    assert [s.name for s in built.sites] == ["z", "partners", "weights", "signs"]
    z = built.sample_prior(2)
    values, images, prior = built.constrain(z)[0], built.images(z)[0], fit_gaussian(public, dtype=client.dtype)
    found = built.terms(z)[1].reshape(9, 2)
    expected, twin = torch.zeros(9, 2, dtype=torch.float64), torch.zeros(9, 2, dtype=torch.float64)
    for c in range(2):
        weights, signs = values["weights"][c], torch.where(values["signs"][c] >= 0, 1.0, -1.0).double()
        partners = prior.decode(values["partners"][c])
        for k in range(9):
            labels = torch.tensor([[k // 3], [k % 3]])
            for table, flips in ((expected, signs), (twin, -signs)):
                u = by_hand(client, images[c], y, mixup.Draws(weights, partners, labels, flips))
                table[k, c] = -0.5 * (g - u).square().sum() / SIGMA**2
    torch.testing.assert_close(found.logsumexp(0).diff(), expected.logsumexp(0).diff())
    torch.testing.assert_close(found.sort(0).values.diff(dim=0), expected.sort(0).values.diff(dim=0))
    assert not torch.allclose(expected.logsumexp(0).diff(), twin.logsumexp(0).diff(), rtol=1e-3)


def test_a_sign_is_a_fair_coin_with_a_slope() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    signs = mixup.signs_of(noise)
    assert set(signs.tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 4 / 20_000**0.5
    at = torch.zeros(1, requires_grad=True)
    assert float(torch.autograd.grad(mixup.signs_of(at).sum(), at)[0]) == pytest.approx(1 / mixup.WIDTH)


@pytest.mark.slow
def test_what_hides_the_image_is_that_nobody_knows_what_was_mixed_in() -> None:
    """Of a public seed all is seen, signs or not; of a secret one the prior tells the images apart, within limits."""

    def found(model: str, **settings: Any) -> float:
        target = from_data(defence="mixup", defence_settings=settings, sigma=1e-3, index=4)
        posterior = attack.attack(target, model, "map", settings={"steps": 100, "starts": 4})
        assert target.truth is not None
        return float(metrics.psnr(posterior.mode, target.truth.numpy())[0])

    assert found("mixup", signs=True, public_seed=3) > 35
    assert found("optimal", signs=True, public_seed=3) < 15
    secret, ignorant = found("mixup"), found("optimal")
    assert ignorant + 2 < secret < 25


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"images": 1}, "at least 2 images"), ({"images": 65}, "at most 64"), ({"alpha": 0.0}, "alpha must be a positive"),
     ({"others": "cifar10"}, "cifar10"), ({"public_seed": 2**70}, "public_seed must be a whole number")],
)  # fmt: skip
def test_a_mixture_that_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        from_data(defence="mixup", defence_settings=settings)
    with pytest.raises(BadInput, match="the client's loss is mse"):
        from_data(defence="mixup", loss="mse")
