"""Defences as parts of a client: each does what its paper says, and what it may not be asked for it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import batch_of, own, tiny
from PIL import Image, ImageEnhance, ImageOps
from scenes import build_client, from_data
from torch import Tensor, nn

from pplleak import data, programs
from pplleak.client import Client, networks, seeded
from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput
from pplleak.federation import defences
from pplleak.federation.defences import ats, mix, precode, soteria
from pplleak.settings import Named

each_defence = pytest.mark.parametrize("name", list(defences.names()))
SMOOTH = ["3-1-7", "2-6-10", "13-4-20", "0-8-7", "28-29-39", "21-12-18+42-26-25"]


@each_defence
def test_it_exports_one_entry_whose_settings_have_defaults_and_help(name: str) -> None:
    module = defences.load(name)
    assert hasattr(module, "share") != hasattr(module, "network")
    assert all(s.help for s in programs.settings(defences.entry(name)))
    assert "Source: " in (module.__doc__ or "") and defences.names()[name]


@each_defence
@pytest.mark.parametrize("size", [1, 2])
def test_what_it_shares_is_as_large_as_an_update_and_another_than_it(name: str, size: int) -> None:
    network, settings = ("convnet", {"channels": (2, 2)}) if name == "cvb" else ("mlp", {"widths": (16,)})
    target = from_data(defence=name, batch_size=size, network=network, settings=settings, sigma=1e-6, dtype="float64")
    client, y = target.client, target.labels
    assert target.truth is not None and y is not None
    assert target.g.shape == (client.update_size,)
    assert not torch.allclose(target.g, client.update(target.truth, y).materialise(), rtol=1e-3, atol=1e-4)
    assert target.protection.defence == defences.check(Named(name))


def test_without_a_defence_a_client_sends_its_update() -> None:
    client = tiny()
    x, y = batch_of(client, size=2)
    assert torch.equal(defences.share(client, x, y), client.update(x, y).materialise())


# -- Soteria ---------------------------------------------------------------------------------------------------------


def sensitivity_by_loops(client: Client, x: Tensor, *, divided: bool = True) -> Tensor:
    """Of the features before the last layer of an mlp: one backward pass a feature and an example."""
    features = nn.Sequential(*list(client.network.children())[:-1])
    total = torch.zeros(features(x).shape[1], dtype=x.dtype)
    for one in x:
        for i in range(len(total)):
            image = one[None].clone().requires_grad_()
            r = features(image)[0, i]
            (slope,) = torch.autograd.grad(r, image)
            total[i] += slope.norm() / (r.detach() + soteria.OFFSET if divided else 1)
    return total.abs()


@pytest.mark.parametrize("size", [1, 3])
def test_soteria_drops_the_columns_of_the_features_it_scores_lowest(size: int) -> None:
    client = tiny(widths=(8,))
    x, y = batch_of(client, size=size)
    sent = client.split(soteria.sent(client, x, y, rate=0.4).double())
    score = sensitivity_by_loops(client, x)
    kept = (score >= np.quantile(score.numpy(), 0.4)).double()
    assert kept.sum() == 5
    assert torch.equal(sent["3.weight"], kept.expand(3, -1))
    assert all((sent[n] == 1).all() for n in ("1.weight", "1.bias", "3.bias"))
    twin = sensitivity_by_loops(client, x, divided=False)
    assert not torch.equal(kept, (twin >= np.quantile(twin.numpy(), 0.4)).double()), "the check has no power"
    expected = client.update(x, y).materialise() * soteria.sent(client, x, y, rate=0.4)
    assert torch.equal(soteria.share(client, x, y, rate=0.4), expected)


def test_soteria_defends_the_layer_that_is_named() -> None:
    client = tiny(widths=(8, 6))
    x, y = batch_of(client)
    sent = client.split(soteria.sent(client, x, y, rate=0.5, layer="3"))
    assert not sent["3.weight"].all() and sent["5.weight"].all() and sent["1.weight"].all()
    with pytest.raises(BadInput, match=r"no fully connected layer '4': it has 1, 3, 5"):
        soteria.share(client, x, y, layer="4")
    with pytest.raises(BadInput, match="at least 0 and below 1"):
        soteria.share(client, x, y, rate=1.0)
    convolution = own(lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten()), (1, 2, 2))
    with pytest.raises(BadInput, match="this network shares none"):
        soteria.share(convolution, *batch_of(convolution))


def test_the_channels_noise_is_on_what_was_sent_alone() -> None:
    target = from_data(defence="soteria", defence_settings={"rate": 0.6}, sigma=0.1)
    assert target.truth is not None and target.labels is not None
    sent = soteria.sent(target.client, target.truth, target.labels, rate=0.6)
    assert torch.equal(target.g != 0, sent)


# -- ATS -------------------------------------------------------------------------------------------------------------


def image() -> Tensor:
    """A wavy image with texture, (1, 28, 28) in [0.1, 0.9], in whole levels of PIL's 255."""
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 28), torch.linspace(0, 4, 28), indexing="ij")
    texture = 0.2 * torch.rand(28, 28, generator=torch.Generator().manual_seed(0)) - 0.1
    return (255 * (0.5 + 0.3 * torch.sin(rows) * torch.cos(columns) + texture)).round()[None].double() / 255


def pil(x: Tensor) -> Image.Image:
    return Image.fromarray((255 * x[0]).round().to(torch.uint8).numpy(), "L")


def back(x: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(x)).double()[None] / 255


def shifted(x: Image.Image, *affine: float) -> Image.Image:
    return x.transform(x.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


@pytest.mark.parametrize(
    ("name", "amount", "reference"),
    [
        ("invert", 0.0, ImageOps.invert),
        ("autocontrast", 0.0, ImageOps.autocontrast),
        ("brightness", 0.5, lambda x: ImageEnhance.Brightness(x).enhance(1.5)),
        ("contrast", -0.3, lambda x: ImageEnhance.Contrast(x).enhance(0.7)),
        ("sharpness", 0.5, lambda x: ImageEnhance.Sharpness(x).enhance(1.5)),
        ("color", 0.5, lambda x: x),
        ("translateX", 0.25, lambda x: shifted(x, 1, 0, -7, 0, 1, 0)),
        ("translateY", -0.25, lambda x: shifted(x, 1, 0, 0, 0, 1, 7)),
        ("shearY", 0.2, lambda x: shifted(x, 1, 0, 0, 0.2, 1, 0)),
        ("rotate", 10.0, lambda x: x.rotate(-10.0, Image.Resampling.BILINEAR)),
    ],
)
def test_an_operation_is_that_of_pil(name: str, amount: float, reference: object) -> None:
    assert callable(reference)
    x = image()
    found, expected = ats.apply(x, [(name, amount)]), back(reference(pil(x)))
    assert (found - expected)[:, 9:-9, 9:-9].abs().max() < 3 / 255  # PIL rounds, and fills its borders in its own way
    if name != "color":  # a grey image has none
        twin = ats.apply(x, [(name, -amount)] if amount else [])
        assert (twin - expected)[:, 9:-9, 9:-9].abs().max() > 5 / 255


@pytest.mark.parametrize("policy", SMOOTH)
def test_a_policy_is_a_mixture_of_transforms_with_slopes(policy: str) -> None:
    several = ats.variants(policy)
    assert math.isclose(sum(v.probability for v in several), 1)
    generator = torch.Generator().manual_seed(0)
    x = 0.2 + 0.6 * torch.rand(2, 3, 1, 8, 8, dtype=torch.float64, generator=generator)
    choice = torch.randint(len(several), (2, 3), generator=generator)
    slopes = torch.randn(x.shape, dtype=torch.float64, generator=generator)

    def value(x: Tensor) -> Tensor:
        return (ats.transform(x, choice, policy) * slopes).sum()

    (gradient,) = torch.autograd.grad(value(x.requires_grad_()), x)
    step = 1e-6 * torch.randn(x.shape, dtype=torch.float64, generator=generator)
    difference = (value(x.detach() + step) - value(x.detach() - step)) / 2
    torch.testing.assert_close(difference, (gradient * step).sum(), rtol=1e-5, atol=1e-10)
    for k in range(2):
        for b in range(3):
            alone = ats.apply(x[k, b], several[int(choice[k, b])].steps)
            torch.testing.assert_close(ats.transform(x, choice, policy)[k, b], alone)


def test_the_papers_first_policy_has_eight_transforms_and_a_pair_of_policies_as_many_more() -> None:
    assert len(ats.variants("3-1-7")) == 8
    assert len(ats.variants("3-1-7+43-18-18")) == 16
    assert {name for v in ats.variants("3-1-7") for name, _ in v.steps} == {"translateX", "contrast", "translateY"}
    assert len(ats.OPERATIONS) == 50


@pytest.mark.parametrize(
    ("policy", "said"),
    [("3-1-99", "unknown policy"), ("three", "unknown policy"), ("", "unknown policy"), ("9-1-3", "9 is equalize"),
     ("11-1-3", "11 is posterize"), ("37-1-3", "37 is solarize")],
)  # fmt: skip
def test_a_policy_that_is_unknown_or_jumps_is_refused(policy: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        ats.variants(policy)


# -- PRECODE ---------------------------------------------------------------------------------------------------------


def extended(base: str = "mlp", beta: float = 0.3, **settings: object) -> Client:
    """A client with a bottleneck of three, in float64; a large beta, so that its KL matters."""

    def build() -> nn.Module:
        network = networks.get(base)((1, 4, 4), 3, **settings)
        return precode.network(network, (1, 4, 4), 3, size=3, beta=beta)

    return Client(seeded(build, 0).double(), (1, 4, 4), 3)


def gradient_by_hand(client: Client, x: Tensor, y: Tensor, noise: Tensor, *, kl: bool = True) -> Tensor:
    """∇θ of the mean of cross entropy + β KL / log 2, by plain autograd and torch's own KL."""
    made = client.network
    assert isinstance(made, precode.Precode)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in made.named_parameters()}
    features = nn.Sequential(*list(made.base.children())[:-1])

    def bottleneck(features_of: Tensor) -> tuple[Tensor, torch.distributions.Normal]:
        raw = features_of @ parameters["encoder.weight"].mT + parameters["encoder.bias"]
        q = torch.distributions.Normal(raw[:, :3], nn.functional.softplus(raw[:, 3:]))
        b = q.loc + q.scale * noise
        return b @ parameters["decoder.weight"].mT + parameters["decoder.bias"], q

    inner = {n.removeprefix("base."): p for n, p in parameters.items() if n.startswith("base.")}
    own_features = {n: p for n, p in inner.items() if n in dict(features.named_parameters())}
    h = torch.func.functional_call(features, own_features, (x,))
    squeezed, q = bottleneck(h)
    last = [n for n in inner if n not in own_features]
    logits = squeezed @ inner[last[0]].mT + inner[last[1]]
    loss = nn.functional.cross_entropy(logits, y)
    if kl:
        unit = torch.distributions.Normal(torch.zeros_like(q.loc), torch.ones_like(q.scale))
        loss = loss + 0.3 * torch.distributions.kl_divergence(q, unit).sum(1).mean() / math.log(2)
    found = torch.autograd.grad(loss, list(parameters.values()))
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("base", [("mlp", {"widths": (5,)}), ("convnet", {"channels": (2, 2), "width": 4})])
def test_the_gradient_behind_precode_is_that_of_its_loss(base: tuple[str, dict[str, object]]) -> None:
    client = extended(base[0], **base[1], activation="gelu")
    assert client.lazy and client.noise_shape == (3,)
    x, y = batch_of(client, size=2)
    noise = torch.randn(2, 3, dtype=torch.float64)
    expected = gradient_by_hand(client, x, y, noise)
    found = client.update(x, y, noise)
    torch.testing.assert_close(found.materialise(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(client.materialised(x, y, noise).materialise(), expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found.materialise(), gradient_by_hand(client, x, y, noise, kl=False), rtol=1e-3)
    assert not torch.allclose(found.materialise(), client.update(x, y).materialise(), rtol=1e-3)


def test_noise_broadcasts_over_chains_and_has_slopes() -> None:
    client = extended(widths=(5,))
    x, y = batch_of(client, (), 2)
    noise = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(client.update_size, dtype=torch.float64)
    found = client.update(x, y, noise).sqdist(g)
    assert found.shape == (4,)
    alone = torch.stack([client.update(x, y, n).sqdist(g) for n in noise])
    torch.testing.assert_close(found, alone)
    (slopes,) = torch.autograd.grad(found.sum(), noise)
    step = 1e-6 * torch.randn(4, 2, 3, dtype=torch.float64)
    ends = [client.update(x, y, noise.detach() + s * step).sqdist(g).sum() for s in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]) / 2, (slopes * step).sum(), rtol=1e-5, atol=1e-12)


def test_where_there_is_no_noise_none_is_taken_and_where_it_cannot_be_modelled_it_is_refused() -> None:
    client = tiny()
    assert client.noise() is None
    with pytest.raises(BadInput, match="draws no noise"):
        client.update(*batch_of(client), torch.zeros(1, 3))
    with pytest.raises(BadInput, match="share one gradient"):
        from_data(defence="precode", local=LocalTraining(0.1))
    with pytest.raises(BadInput, match="the network has none"):
        precode.network(nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten()), (1, 2, 2), 3)


# -- mixing ----------------------------------------------------------------------------------------------------------


def test_a_mix_is_the_mean_over_clients() -> None:
    client = build_client("linear", {}, (1, 8, 8), 10, dtype="float64")
    x, y = batch_of(client, size=2)
    u = client.update(x, y).materialise()
    assert torch.equal(mix.share(client, x, y, clients=1), u)
    torch.manual_seed(3)
    found = mix.share(client, x, y, clients=3)
    torch.manual_seed(3)
    digits = data.private("digits")
    picks = torch.randint(len(digits), (2, 2))
    others = [client.update(digits.x[p], digits.y[p]).materialise() for p in picks]
    torch.testing.assert_close(found, (u + others[0] + others[1]) / 3)
    with pytest.raises(BadInput, match="at least 1 client"):
        mix.share(client, x, y, clients=0)
    with pytest.raises(BadInput, match="set its others"):
        mix.share(tiny(), *batch_of(tiny()))
