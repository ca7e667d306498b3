"""Labels that are repeated or perturbed: what is shared, and that who knows has the companions or q as latents."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import batch_of, tiny
from scenes import build_client, from_data, known
from torch import Tensor, nn

from pplleak import data, density, programs
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.defences import same_label, soften
from pplleak.federation.observation import Observation
from pplleak.posterior import metrics
from pplleak.priors.gaussian import fit_gaussian
from pplleak.studies.attack import attack
from pplleak.studies.attack.attack import believe

SIGMA = 0.2


def gradient(client: Client, x: Tensor, q: Tensor) -> Tensor:
    """∇θ of the mean cross entropy of images x (N, …) and labels q, (N,) or (N, K), by plain autograd."""
    network = copy.deepcopy(client.network).requires_grad_()
    loss = nn.functional.cross_entropy(network(x), q)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def test_an_example_shares_its_gradient_with_companions_of_its_class() -> None:
    client = build_client("mlp", {"widths": (5,)}, (1, 8, 8), 10, dtype="float64")
    x, _ = batch_of(client, size=2)
    y, digits = torch.tensor([3, 7]), data.private("digits")
    torch.manual_seed(5)
    made = same_label.companions(client, y, 3, "digits")
    for label, images in zip(y, made, strict=True):
        mine = digits.x[digits.y == label].double()
        assert all((mine == image).flatten(1).all(1).any() for image in images)
    torch.manual_seed(5)
    found = same_label.share(client, x, y, repeats=3)
    images = torch.stack([x[0], *made[0], x[1], *made[1]])
    torch.testing.assert_close(found, gradient(client, images, torch.tensor([3, 3, 3, 7, 7, 7])))
    assert not torch.allclose(found, gradient(client, images, torch.tensor([3, 7, 3, 7, 3, 7])), rtol=1e-2)
    torch.testing.assert_close(same_label.share(client, x, y, repeats=1), gradient(client, x, y))


@pytest.mark.parametrize("shared", [True, False], ids=["known labels", "unknown labels"])
def test_to_who_knows_the_companions_are_more_images_of_the_class(shared: bool) -> None:
    client = tiny()
    x, y = batch_of(client, size=1)
    g = client.update(x, y).materialise() + 0.1
    public = torch.rand(30, *client.input_shape, generator=torch.Generator().manual_seed(3))
    target = known(client, Observation(g, 1, y if shared else None), public=public, sigma=SIGMA)
    built = density.build(believe(programs.load("models", "same_label"), target, {"repeats": 3}), client, target)
    assert [s.name for s in built.sites] == ["z", "companions"]
    z = built.sample_prior(3)
    values, prior = built.constrain(z)[0], fit_gaussian(public)
    companions = prior.decode(values["companions"])[:, 0]

    def log_p(labels: tuple[int, ...]) -> Tensor:
        found = [
            gradient(client, torch.cat([prior.decode(own)[0], *others[:, None]]), torch.tensor(labels))
            for own, others in zip(values["z"][:, None], companions, strict=True)
        ]
        return -0.5 * (g - torch.stack(found)).square().sum(-1) / SIGMA**2

    if shared:
        found, expected = built.terms(z)[1].detach(), log_p((int(y),) * 3)
    else:
        found = (built(z) + 0.5 * z.square().sum(1)).detach()
        expected = torch.stack([log_p((k, k, k)) for k in range(3)]).logsumexp(0)
    torch.testing.assert_close(found.diff(), expected.diff())
    assert not torch.allclose(found.diff(), log_p((0, 1, 2)).diff(), rtol=1e-3)


def test_a_softened_label_is_between_its_class_and_a_draw_from_the_simplex() -> None:
    client = build_client("mlp", {"widths": (5,)}, (1, 8, 8), 10, dtype="float64")
    x, y = batch_of(client, size=2)
    torch.manual_seed(5)
    drawn = torch.distributions.Dirichlet(torch.ones(2, 10, dtype=torch.float64)).sample()
    q = 0.7 * torch.eye(10, dtype=torch.float64)[y] + 0.3 * drawn
    torch.manual_seed(5)
    found = soften.share(client, x, y, softness=0.3)
    torch.testing.assert_close(found, gradient(client, x, q))
    assert not torch.allclose(found, gradient(client, x, y), rtol=1e-2)
    torch.testing.assert_close(soften.share(client, x, y, softness=0.0), gradient(client, x, y))
    each = torch.stack([soften.share(client, x[:1], y[:1], softness=0.3) for _ in range(2)])
    assert not torch.allclose(*each, rtol=1e-2)


def test_to_who_knows_what_was_spread_is_a_latent_on_the_simplex() -> None:
    client = tiny()
    x, y = batch_of(client, size=2)
    g = client.update(x, y).materialise() + 0.1
    public = torch.rand(30, *client.input_shape, generator=torch.Generator().manual_seed(3))
    target = known(client, Observation(g, 2, y), public=public, sigma=SIGMA)
    built = density.build(believe(programs.load("models", "soften"), target, {"softness": 0.4}), client, target)
    assert [s.name for s in built.sites] == ["z", "drawn"]
    z = built.sample_prior(3)
    values, images = built.constrain(z)[0], built.images(z)[0]
    assert torch.allclose(values["drawn"].sum(-1), torch.ones(3, 2, dtype=torch.float64))

    def log_p(softness: float) -> Tensor:
        hard = torch.eye(3, dtype=torch.float64)[y]
        made = [gradient(client, image, (1 - softness) * hard + softness * d)
                for image, d in zip(images, values["drawn"], strict=True)]  # fmt: skip
        return -0.5 * (g - torch.stack(made)).square().sum(-1) / SIGMA**2

    found = built.terms(z)[1].detach()
    torch.testing.assert_close(found.diff(), log_p(0.4).diff())
    assert not torch.allclose(found.diff(), log_p(0.0).diff(), rtol=1e-3)


def batch_attacked(picks: Tensor) -> float:
    """PSNR of a batch of digits to who knows its size and labels, each image beside the one that it is."""
    digits, target = data.private("digits"), from_data(sigma=1e-3)
    x, y = digits.x[picks], digits.y[picks]
    g = target.client.update(x, y).materialise()
    g = g + 1e-3 * torch.randn(g.shape, generator=torch.Generator().manual_seed(0))
    batch = known(target.client, Observation(g, len(y), y), sigma=1e-3, public=target.public, truth=x)
    found = attack.attack(batch, "optimal", "map", settings={"steps": 200, "starts": 2}).mode
    truth = x.numpy()
    return float(metrics.psnr(found[metrics.match(found, truth)], truth).mean())


@pytest.mark.slow
def test_images_of_one_class_come_back_together_and_less_well_than_those_of_two() -> None:
    digits, index = data.private("digits"), 4
    same, other = (mask.nonzero().flatten() for mask in (digits.y == digits.y[index], digits.y != digits.y[index]))
    found, apart = (batch_attacked(torch.cat([same[:1], second[1:2]])) for second in (same, other))
    assert 28 < found < apart - 5  # a guess without the gradient has 12


def test_what_cannot_be_repeated_or_softened_is_refused() -> None:
    for name, settings, said in (
        ("same_label", {"repeats": 0}, "at least 1"), ("soften", {"softness": 1.0}, "at least 0 and below 1"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            from_data(defence=name, defence_settings=settings)
    with pytest.raises(BadInput, match="the client's loss is mse"):
        from_data(defence="soften", loss="mse")
    with pytest.raises(BadInput, match="has no image of class 12"):
        same_label.companions(build_client("linear", {}, (1, 8, 8), 13), torch.tensor([12]), 2, "digits")
