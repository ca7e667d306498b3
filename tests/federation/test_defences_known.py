"""The adversaries who know a defence: each one's density is the defence's, and each sees more."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import command as run
from conftest import batch_of, tiny
from safetensors.torch import save_file
from scenes import from_data, known
from torch import Tensor

from pplleak import channels, density, programs
from pplleak.client import Client, masks, weights
from pplleak.density import Density
from pplleak.errors import BadInput
from pplleak.federation import defences
from pplleak.federation.defences import ats, dropout
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.posterior import Posterior, metrics
from pplleak.settings import Named
from pplleak.studies.attack import attack
from pplleak.studies.attack.attack import believe

SIGMA = 0.2


def density_of(model: str, client: Client, g: Tensor, y: Tensor, **beliefs: Any) -> Density:
    public = torch.rand(30, *client.input_shape, generator=torch.Generator().manual_seed(3))
    target = known(client, Observation(g, len(y), y), public=public, sigma=SIGMA)
    return density.build(believe(programs.load("models", model), target, beliefs), client, target)


def likelihoods(built: Density, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """z, x(z) and log p(g | z), of draws from the prior."""
    z = built.sample_prior(count)
    return z, built.images(z)[0], built.terms(z)[1].detach()


def quadratic(client: Client, g: Tensor, x: Tensor, y: Tensor, kept: Tensor | None = None) -> Tensor:
    """−Σ over the kept entries of (g − u)² / 2σ², the obvious way."""
    u = client.materialised(x, y.expand(len(x), -1)).materialise()
    kept = torch.ones_like(g) if kept is None else kept
    return -0.5 * (kept * (g - u).square()).sum(-1) / SIGMA**2


def test_behind_soteria_a_dropped_entry_says_nothing() -> None:
    client = tiny(widths=(6,))
    x, y = batch_of(client)
    g = defences.share(client, x, y, Named("soteria", {"rate": 0.5}))
    _, images, found = likelihoods(density_of("soteria", client, g, y))
    expected = quadratic(client, g, images, y, (g != 0).double())
    torch.testing.assert_close(found.diff(), expected.diff())
    assert not torch.allclose(found.diff(), quadratic(client, g, images, y).diff(), rtol=1e-2)


def test_behind_ats_every_transform_is_summed_out() -> None:
    client, policy = tiny(shape=(1, 4, 4)), "7-1-13+2-3-1"
    x, y = batch_of(client, size=1)
    several = ats.variants(policy)
    g = client.update(ats.apply(x, several[2].steps), y).materialise()
    built = density_of("ats", client, g, y, policy=policy)
    z, images, _ = likelihoods(built)
    each = torch.stack([
        math.log(v.probability) + quadratic(client, g, ats.apply(images, v.steps), y) for v in several
    ])  # fmt: skip
    whitened = -0.5 * z.square().sum(1)
    torch.testing.assert_close((built(z) - whitened).diff(), each.logsumexp(0).diff())
    assert not torch.allclose((built(z) - whitened).diff(), each[:8].logsumexp(0).diff(), rtol=1e-3)


def test_behind_precode_the_noise_is_a_latent_variable() -> None:
    target = from_data(
        settings={"widths": (6,)}, defence="precode", defence_settings={"size": 3}, sigma=SIGMA, dtype="float64"
    )
    client, y = target.client, target.labels
    assert y is not None
    bound = believe(programs.load("models", "precode"), target)
    built = density.build(bound, client, target)
    z = built.sample_prior(4)
    assert [s.name for s in built.sites] == ["z", "noise"]
    values, _ = built.constrain(z)
    x = built.images(z)[0]
    u = client.materialised(x, y.expand(4, -1), values["noise"]).materialise()
    expected = -0.5 * (target.g - u).square().sum(-1) / SIGMA**2
    torch.testing.assert_close(built.terms(z)[1].diff(), expected.diff())
    without = client.materialised(x, y.expand(4, -1)).materialise()
    twin = -0.5 * (target.g - without).square().sum(-1) / SIGMA**2
    assert not torch.allclose(expected.diff(), twin.diff(), rtol=1e-3)


def test_behind_dropout_the_mask_is_a_latent_variable() -> None:
    target = from_data(
        settings={"widths": (6,)}, defence="dropout", defence_settings={"rate": 0.5}, sigma=SIGMA, dtype="float64"
    )
    client, y = target.client, target.labels
    assert y is not None and isinstance(client.network, dropout.Dropout)
    built = density.build(believe(programs.load("models", "dropout"), target), client, target)
    z = built.sample_prior(4)
    values, _ = built.constrain(z)
    kept = (values["noise"][:, 0].abs() <= masks.bound(0.5)).double()
    assert 0 < kept.mean() < 1
    x = built.images(z)[0]
    network = copy.deepcopy(client.network.base).requires_grad_()
    assert isinstance(network, torch.nn.Sequential)
    features, last = network[:-1], network[-1]
    u = []
    for image, mask in zip(x, kept, strict=True):  # the gradient of the thinned network, by plain autograd
        loss = torch.nn.functional.cross_entropy(last(2 * mask * features(image)), y)
        u.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]))
    expected = -0.5 * (target.g - torch.stack(u)).square().sum(-1) / SIGMA**2
    torch.testing.assert_close(built.terms(z)[1].diff(), expected.diff())
    whole = client.materialised(x, y.expand(4, -1)).materialise()
    twin = -0.5 * (target.g - whole).square().sum(-1) / SIGMA**2
    assert not torch.allclose(expected.diff(), twin.diff(), rtol=1e-3)


def test_behind_a_mean_over_clients_their_number_is_known_and_their_updates_are_those_of_public_images() -> None:
    target = from_data(settings={"widths": (6,)}, defence="mix", defence_settings={"clients": 5}, sigma=SIGMA,
                       dtype="float64")  # fmt: skip
    client, y = target.client, target.labels
    assert y is not None and target.public is not None
    built = density.build(believe(programs.load("models", "optimal:channel=aggregated"), target), client, target)
    z = built.sample_prior(3)
    u = client.materialised(built.images(z)[0], y.expand(3, -1)).materialise()
    mean, variance, factor = channels.aggregated.others(client, target.public, 1, 200, 20)

    def expected(clients: int) -> Tensor:
        spread = (clients - 1) / clients**2 * (variance.diag() + factor @ factor.mT)
        law = torch.distributions.MultivariateNormal(
            (u + (clients - 1) * mean) / clients, spread + SIGMA**2 * torch.eye(len(mean), dtype=torch.float64)
        )
        return law.log_prob(target.g)

    found = built.terms(z)[1].diff()
    torch.testing.assert_close(found, expected(5).diff(), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(found, expected(4).diff(), rtol=1e-2)


def test_a_dropped_feature_has_the_slope_of_a_smooth_mask_and_the_value_of_a_hard_one() -> None:
    noise = torch.tensor([[0.0, masks.bound(0.3) + 1e-6, -3.0]], dtype=torch.float64, requires_grad=True)
    mask = masks.mask(noise, 0.3)
    assert mask.tolist() == [[1.0, 0.0, 0.0]]
    (slope,) = torch.autograd.grad(mask.sum(), noise)
    assert slope[0, 1] == pytest.approx(-0.25 / masks.WIDTH, rel=1e-4) and slope[0, 2] > 0
    draws = masks.mask(torch.randn(1, 40_000, generator=torch.Generator().manual_seed(0)), 0.3)
    assert float(draws.mean()) == pytest.approx(0.7, abs=4 * (0.21 / 40_000) ** 0.5)


@functools.cache
def found(defence: str, settings: tuple[tuple[str, Any], ...], model: str) -> float:
    """PSNR of the MAP on one digit of the embedded data."""
    target = from_data(defence=defence, defence_settings=dict(settings), sigma=1e-3, index=4)
    effort = {"steps": 150, "starts": 3} if defence == "ats" else {"steps": 100, "starts": 2}  # sums over transforms
    posterior = attack.attack(target, model, "map", settings=effort)
    assert target.truth is not None
    return float(metrics.psnr(posterior.mode, target.truth.numpy())[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defence", "settings"),
    [("soteria", {"rate": 0.8}), ("ats", {"policy": "24-1-3"}), ("precode", {"size": 32}), ("dropout", {"rate": 0.5}),
     ("mix", {"clients": 2}), ("conceal", {}), ("soften", {}), ("outpost", {}), ("inf2guard", {}),
     ("refiner", {}), ("obscure", {"trade": 0.1})],
)  # fmt: skip
def test_who_knows_the_defence_sees_more(defence: str, settings: dict[str, Any]) -> None:
    plain = found("", (), "optimal")
    known_by = defences.load(defence).ATTACKS.knowing
    ignorant, knowing = (found(defence, tuple(settings.items()), m) for m in ("optimal", known_by))
    assert plain > ignorant + 3, "the defence hides nothing from who does not know it"
    assert knowing > ignorant + 3


# -- the command line ------------------------------------------------------------------------------------------------


FEW = ("--inference", "map", "--inference.steps", "5", "--inference.starts", "2")


@pytest.mark.slow
@pytest.mark.parametrize("defence", ["soteria", "ats", "precode", "dropout"])
def test_an_observation_carries_its_defence(defence: str, tmp_path: Path) -> None:
    setting = {"soteria": ("rate", 0.7), "ats": ("policy", "24-1-3"), "precode": ("size", 5), "dropout": ("rate", 0.3)}[
        defence
    ]
    asked = ("--defence", defence, f"--defence.{setting[0]}", setting[1])
    assert run("observe", *asked, "--out", tmp_path / "o.safetensors") == 0
    model = ("--model", defence, *FEW)
    assert run("attack", "--observed", tmp_path / "o.safetensors", *model, "--out", tmp_path / "a") == 0
    assert run("attack", *asked, *model, "--out", tmp_path / "b") == 0
    one, two = (Posterior.load(tmp_path / k / "posterior.nc") for k in "ab")
    assert (one.x == two.x).all()
    known = Protection.parse(one.attrs["protection"]).defence
    assert known is not None and known.name == defence and known.settings[setting[0]] == setting[1]
    if setting[0] in one.attrs["beliefs"]:
        assert one.attrs["beliefs"][setting[0]] == setting[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--defence", "sotera"), "did you mean soteria or soften?"),
        (("--defence", "soteria", "--defence.layer", "fc9"), "no fully connected layer 'fc9': it has 1, 3"),
        (("--defence", "soteria", "--defence.rate", "1"), "at least 0 and below 1"),
        (("--defence", "ats", "--defence.policy", "3-1-77"), "unknown policy '3-1-77'"),
        (("--defence", "ats", "--defence.policy", "3-1-9"), "operation 9 is equalize, which jumps"),
        (("--defence", "ats", "--local-lr", "0.1"), "let it share a gradient"),
        (("--defence", "precode", "--defence.size", "0"), "size must be a positive number"),
        (("--defence", "dropout", "--defence.rate", "1"), "rate must be above 0 and below 1"),
        (("--defence", "dropout", "--local-lr", "0.1"), "share one gradient"),
        (("--defence", "mix", "--defence.clients", "0"), "at least 1 client"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("attack", *argv, *FEW, "--out", tmp_path) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1 and "Traceback" not in shown


def test_a_checkpoint_of_another_defence_is_refused(tmp_path: Path) -> None:
    plain = from_data(settings={"widths": (4,)})
    file = tmp_path / "weights.safetensors"
    tensors = {n: t.contiguous() for n, t in weights.state(plain.client.network).items()}
    save_file(tensors, file, {"defence": "soteria"})
    with pytest.raises(BadInput, match="trained with the defence soteria, and this client has ats"):
        from_data(settings={"widths": (4,)}, checkpoint=file, defence="ats")
    with pytest.raises(BadInput, match="and this client has none"):
        from_data(settings={"widths": (4,)}, checkpoint=file)
    from_data(settings={"widths": (4,)}, checkpoint=file, defence="soteria")
    save_file(tensors, file)  # weights of nobody knows which training
    with pytest.raises(BadInput, match="is of another network"):
        from_data(settings={"widths": (4,)}, checkpoint=file, defence="precode")
