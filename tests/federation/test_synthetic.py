"""Gradients of made-up images: their objective is their equation, and pairs tell what is left of the image."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import batch_of, tiny
from scenes import build_client, from_data, known
from torch import Tensor, nn

from pplleak import density, programs
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation import defences
from pplleak.federation.defences import _synthetic, obscure, refiner
from pplleak.federation.observation import Observation
from pplleak.priors.gaussian import fit_gaussian
from pplleak.studies.attack.attack import believe

SIGMA = 0.2
BOTH = pytest.mark.parametrize("name", ["refiner", "obscure"])
HOW: dict[str, Any] = {"trade": 0.3, "far": 0.2, "blend": 0.5, "steps": 30, "lr": 0.03}


def digits() -> Client:
    return build_client("mlp", {"widths": (16,), "activation": "gelu"}, (1, 8, 8), 10, dtype="float64")


def gradient(client: Client, x: Tensor, y: Tensor) -> Tensor:
    network = copy.deepcopy(client.network).requires_grad_()
    loss = nn.functional.cross_entropy(network(x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def objective(name: str, client: Client, made: Tensor, x: Tensor, y: Tensor, *, weighted: bool = True) -> float:
    """As the files' equations have it, of one batch, by plain autograd."""
    distance = (made - x).square().mean()
    gain = HOW["trade"] * (1 - torch.exp(-distance / (2 * HOW["far"] ** 2)))
    if name == "obscure":
        assert isinstance(client.network, nn.Sequential)
        near, aim = (client.network[:-1](image) for image in (made, x))
        return float((near - aim).square().sum() / aim.square().sum() - gain)
    near, aim = (gradient(client, image, y) for image in (made, x))
    theta = torch.cat([p.flatten() for p in client.network.parameters()]).detach()
    w = (theta * aim).abs() if weighted else torch.ones_like(aim)
    return float((w * (near - aim).square()).sum() / (w * aim.square()).sum() - gain)


@BOTH
def test_the_made_up_image_descends_on_its_objective_and_its_gradient_is_shared(name: str) -> None:
    client, module = digits(), defences.load(name)
    x, y = batch_of(client, size=2)
    torch.manual_seed(4)
    start = _synthetic.begun(x, HOW["blend"])
    torch.manual_seed(4)
    made = module.synthetic(client, x, y, **HOW)
    assert made.shape == x.shape and made.min() >= 0 and made.max() <= 1
    assert objective(name, client, made, x, y) < objective(name, client, start, x, y) - 0.02
    torch.manual_seed(4)
    torch.testing.assert_close(module.share(client, x, y, **HOW), gradient(client, made, y))
    assert not torch.allclose(gradient(client, made, y), gradient(client, x, y), rtol=1e-2)


@BOTH
def test_a_step_is_down_the_slope_of_its_equation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The objective that is descended, against the one by plain autograd."""
    client, seen = digits(), {}
    x, y = batch_of(client, size=2)

    def spy(start: Tensor, objective: Any, **how: Any) -> Tensor:
        seen["value"] = float(objective(0.9 * start))
        return 0.9 * start

    monkeypatch.setattr(_synthetic, "descended", spy)
    made = defences.load(name).synthetic(client, x, y, **HOW)
    assert seen["value"] == pytest.approx(objective(name, client, made, x, y), rel=1e-9)
    if name == "refiner":
        assert seen["value"] != pytest.approx(objective(name, client, made, x, y, weighted=False), rel=1e-2)


@BOTH
def test_each_of_several_chains_is_made_as_if_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, module = digits(), defences.load(name)
    monkeypatch.setattr(_synthetic, "begun", lambda x, blend: 0.5 * x + 0.25)
    x, y = batch_of(client, size=3)
    together = module.synthetic(client, x[:, None], y[:, None], **HOW)
    for k in range(3):
        alone = module.synthetic(client, x[k : k + 1], y[k : k + 1], **HOW)
        torch.testing.assert_close(together[k], alone, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(together[0], together[1])


@BOTH
def test_who_knows_has_both_images_of_a_pair_as_one_latent(name: str) -> None:
    client = tiny()
    x, y = batch_of(client, size=1)
    g = client.update(x, y).materialise() + 0.1
    public = torch.rand(40, *client.input_shape, generator=torch.Generator().manual_seed(3))
    target = known(client, Observation(g, 1, y), public=public, sigma=SIGMA)
    bound = believe(programs.load("models", name), target, {"steps": 5, "simulated": 30})
    built = density.build(bound, client, target)
    settings = {n: bound.keywords.get(n, s) for n, s in
                {"trade": 0.1 if name == "refiner" else 0.02, "far": 0.3, "blend": 0.5,
                 "steps": 5, "lr": 0.03 if name == "refiner" else 0.05}.items()}  # fmt: skip
    pairs = _synthetic.paired(client, name, tuple(sorted(settings.items())), public, None, 30)
    assert pairs.shape == (30, 2, *client.input_shape)
    assert all((public.double() == one).flatten(1).all(1).any() for one in pairs[:, 0])
    prior = fit_gaussian(pairs, floor=0.1)
    z = built.sample_prior(3)
    pair = prior.decode(built.constrain(z)[0]["z"])[:, 0]
    torch.testing.assert_close(built.images(z)[0][:, 0], pair[:, 0])
    made = torch.stack([gradient(client, image[None], y) for image in pair[:, 1]])
    expected = -0.5 * (g - made).square().sum(-1) / SIGMA**2
    found = built.terms(z)[1].detach()
    torch.testing.assert_close(found.diff(), expected.diff())
    own = torch.stack([gradient(client, image[None], y) for image in pair[:, 0]])
    assert not torch.allclose(found.diff(), (-0.5 * (g - own).square().sum(-1) / SIGMA**2).diff(), rtol=1e-3)


def test_features_are_those_before_the_last_layer() -> None:
    client = digits()
    x, _ = batch_of(client, (2,), 3)
    assert isinstance(client.network, nn.Sequential)
    expected = client.network[:-1](x.flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(obscure.features(client, x), expected)


def test_what_cannot_be_made_up_is_refused() -> None:
    for settings, said in (({"blend": 0.0}, "blend must be above 0"), ({"trade": -1.0}, "trade must not be negative"),
                           ({"steps": 0}, "steps must be a positive")):  # fmt: skip
        for name in ("refiner", "obscure"):
            with pytest.raises(BadInput, match=said):
                from_data(defence=name, defence_settings=settings)
    assert refiner.ATTACKS.knowing == "refiner"
