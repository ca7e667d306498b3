"""Targets that are not classes, and losses of the user's own: gradients equal to those of torch's losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command_line import one_line, run
from conftest import batch_of, tiny
from torch import Tensor, nn

import pplleak as pl
from pplleak import programs
from pplleak.client import Client, targets
from pplleak.client.training import LocalTraining
from pplleak.density import build
from pplleak.errors import BadInput
from pplleak.federation.observation import with_targets
from pplleak.studies.attack.attack import believe

OWN = """
import torch
import torch.nn.functional as F

def huber(output, target, *, delta=1.0):
    return F.huber_loss(output, target, delta=delta, reduction="none").mean(1)

def margin(output, target):
    own = output.gather(1, target[:, None])
    return ((1 - own + output).clamp(min=0).square().sum(1) - 1) / output.shape[1]

def whole(output, target):
    return F.mse_loss(output, target)

def mixed(output, target):
    return (output - output.mean(0)).square().mean(1)

def reconstruct(output, target):
    return F.smooth_l1_loss(output, target, reduction="none").flatten(1).mean(1)
"""
REAL = torch.tensor([[0.3, -1.2, 2.0], [1.0, 0.5, -0.5], [0.0, 0.1, 0.2]], dtype=torch.float64)
BINARY = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.float64)
SOFT = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.8, 0.1]], dtype=torch.float64)
CASES: dict[str, tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]] = {
    "mse:targets=real": (REAL, nn.MSELoss()),
    "mse:targets=real,reduction=sum": (REAL, lambda o, y: 3 * nn.MSELoss()(o, y)),
    "bce:targets=binary": (BINARY, nn.BCEWithLogitsLoss()),
    "mse:targets=binary": (BINARY, nn.MSELoss()),
    "bce:targets=probabilities": (SOFT, nn.BCEWithLogitsLoss()),
    "cross_entropy:targets=probabilities": (SOFT, nn.CrossEntropyLoss()),
    "cross_entropy:targets=probabilities,label_smoothing=0.1": (SOFT, nn.CrossEntropyLoss(label_smoothing=0.1)),
    "OWN:huber:targets=real,delta=0.5": (REAL, nn.HuberLoss(delta=0.5)),
    "OWN:margin": (torch.tensor([0, 2, 1]), nn.MultiMarginLoss(p=2)),
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("loss") / "losses.py"
    path.write_text(OWN)
    return str(path)


def a_client(loss: str, **more: Any) -> Client:
    return Client(tiny(activation="tanh").network.requires_grad_(True), (1, 2, 2), loss=loss, **more)


def plain(network: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient by autograd of a loss of the network's output."""
    parameters = {n: p.clone().requires_grad_() for n, p in network.named_parameters()}
    value = loss(torch.func.functional_call(network, parameters, (x,)))
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(parameters.values()))])


@pytest.mark.parametrize("loss", CASES)
def test_the_update_is_the_gradient_of_torchs_loss(loss: str, own: str) -> None:
    given, torchs = CASES[loss]
    client, y = with_targets(a_client(loss.replace("OWN", own)), given, 3)
    x, _ = batch_of(client, size=3)
    assert y is not None and client.lazy
    expected = plain(client.network, x, lambda output: torchs(output, given))
    for found in (client.update(x, y), client.materialised(x, y), client.update(x, given), client.update(x[None], y)):
        torch.testing.assert_close(found.materialise().flatten(), expected, rtol=1e-10, atol=1e-12)
    if given.is_floating_point():
        other = client.update(x, given.flip(0)).materialise()
        assert not torch.allclose(other, expected, rtol=1e-3)


@pytest.mark.parametrize("loss", ["mse:targets=real", "mse:targets=input", "cross_entropy:targets=probabilities"])
def test_local_training_follows_them(loss: str) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    client = Client(module, (1, 2, 2), loss=loss, local=LocalTraining(0.1, 2, 2))
    x, _ = batch_of(client, size=4)
    given = torch.rand(4, 4, dtype=torch.float64).softmax(1)
    y = torch.zeros(4, dtype=torch.long) if "input" in loss else given
    weights = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    for part in (slice(0, 2), slice(2, 4)):
        output = torch.func.functional_call(module, weights, (x[part],))
        target = x[part].flatten(1) if "input" in loss else given[part]
        value = F.cross_entropy(output, target) if "cross" in loss else F.mse_loss(output, target)
        slopes = torch.autograd.grad(value, list(weights.values()))
        weights = {
            n: (w - 0.1 * s).detach().requires_grad_() for (n, w), s in zip(weights.items(), slopes, strict=True)
        }
    expected = torch.cat([(w - p).flatten() for w, p in zip(weights.values(), module.parameters(), strict=True)])
    torch.testing.assert_close(client.update(x, y).materialise(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize(("loss", "torchs"), [("mse:targets=input", nn.MSELoss()),
                                              ("bce:targets=input", nn.BCEWithLogitsLoss()),
                                              ("OWN:reconstruct:targets=input", nn.SmoothL1Loss())])  # fmt: skip
def test_f7_an_autoencoders_target_is_its_input(
    loss: str, torchs: Callable[[Tensor, Tensor], Tensor], image: bool, own: str
) -> None:
    """The input counts twice, and the lazy update's slope in it is that of the materialised one."""
    if loss.startswith("OWN") and not image:
        return
    tail = [nn.Unflatten(1, (1, 2, 2))] if image else []
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4), *tail).double()
    client = Client(module, (1, 2, 2), loss=loss.replace("OWN", own))
    x, _ = batch_of(client, size=2)
    y = torch.zeros(2, dtype=torch.long)
    expected = plain(module, x, lambda output: torchs(output, x if image else x.flatten(1)))
    slopes = []
    for update in (client.update, client.materialised):
        free = x.clone().requires_grad_()
        u = update(free, y).materialise()
        torch.testing.assert_close(u, expected, rtol=1e-10, atol=1e-12)
        slopes.append(torch.autograd.grad(u.square().sum(), free)[0])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-12)
    assert client.lazy and client.labels == 1


@pytest.mark.parametrize(("loss", "said"), [
    ("cross_entropy:targets=real", "targets of the loss cross_entropy are classes, probabilities"),
    ("mse:targets=input", "returns 3 numbers for 4"), ("mse:targets=real,weights=(1.0,2.0,3.0)", "count classes"),
    ("bce:targets=reals", "not reals"), ("OWN:whole:targets=real", "reduction='none'"),
    ("OWN:mixed:targets=real", "depends on the rest of its batch"), ("OWN:nothing", "nothing"),
    ("none.py:huber", "no file none.py"), ("OWN:huber:targets=real,beta=1", "no setting 'beta'"),
    ("OWN:huber", "fails on outputs"),
])  # fmt: skip
def test_a_loss_that_cannot_be_is_one_line(loss: str, said: str, own: str) -> None:
    with pytest.raises(BadInput, match=said):
        a_client(loss.replace("OWN", own))


@pytest.mark.parametrize(("kind", "given", "said"), [
    ("real", [1.0], "1 numbers as targets"), ("binary", [0.5, 1, 0], "zeros and ones"),
    ("probabilities", [0.5, 0.1, 0.1], "sum to 1"), ("real", [[1, 2], [1]], "3 numbers for each example"),
])  # fmt: skip
def test_targets_that_cannot_be_are_one_line(kind: Any, given: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        targets.rows(kind, given, 3, 1)


def test_binary_targets_that_nobody_shared_are_summed_over() -> None:
    """Equal to the sum, by hand, over the densities with each of the 2³ vectors."""
    client = replace(a_client("bce:targets=binary"))
    x, _ = batch_of(client)
    g = client.update(x, torch.tensor([[1.0, 0.0, 1.0]])).materialise()
    observed = pl.Observation(g + 0.01, client=client)
    model = believe(programs.load("models", "optimal"), observed, {"prior": "uniform", "sigma": 0.05})
    density = build(model, client, observed)
    z = torch.randn(2, density.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = density.constrain(z)[0]["x"]
    terms = []
    for vector in targets.every_binary(3):
        u = client.update(values, vector.double().expand(2, 1, 3)).materialise()
        terms.append(-0.5 * (observed.g - u).square().sum(-1) / 0.05**2)
    by_hand = torch.stack(terms).logsumexp(0)
    found = density(z, jacobian=False)
    torch.testing.assert_close(found[0] - found[1], by_hand[0] - by_hand[1], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["real", "probabilities"])
def test_vectors_that_nobody_shared_are_a_latent(kind: str) -> None:
    loss = {"real": "mse:targets=real", "probabilities": "cross_entropy:targets=probabilities"}[kind]
    scenario = pl.Scenario(index=3, loss=loss, labels="unknown", network="mlp:widths=(16,)",
                           protection="gaussian:sigma=0.001")  # fmt: skip
    observed = pl.observe(scenario)
    assert observed.labels is None and observed.client.targets is None and observed.truth is not None
    with pytest.raises(BadInput, match="were not shared"):
        pl.attack(observed, "dlg", "map", settings={"steps": 2})
    density = build(believe(programs.load("models", "optimal"), observed), observed.client, observed)
    assert "target" in {s.name for s in density.sites}
    found = pl.attack(observed, inference="map", settings={"starts": 2, "steps": 200})
    error = float(((found.mode - observed.truth.numpy()) ** 2).mean())
    assert error < 0.002  # the mean of public images is 0.07 away


def test_they_travel_with_the_file_and_code_is_never_chosen_by_one(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "o.safetensors"
    for loss in ("mse:targets=real", "mse:targets=input", "bce:targets=binary", f"{own}:huber:targets=real"):
        words = ["observe", "--loss", loss, "--network.widths", "8", "--sigma", "0.01", "--out", str(file)]
        assert run(words) == 0
        code = ".py" in loss
        assert (f"--loss {loss}" in capsys.readouterr().out) is code  # how to attack it
        observed = pl.load(file, loss=loss if code else None)
        direct = pl.observe(pl.Scenario(loss=loss, network="mlp:widths=(8,)", protection="gaussian:sigma=0.01"))
        assert torch.equal(observed.g, direct.g) and observed.client.loss == loss
        assert observed.labels is not None and direct.truth is not None
        torch.testing.assert_close(observed.client.update(direct.truth, observed.labels).materialise(),
                                   direct.client.update(direct.truth, direct.labels).materialise())  # fmt: skip
        if code:
            with pytest.raises(BadInput, match="not a built-in one but code"):
                pl.load(file)
            one_line(
                ["attack", "--observed", str(file), "--out", str(tmp_path / "a")], capsys, "name the loss yourself"
            )
        else:
            with pytest.raises(BadInput, match="name no other one"):
                pl.load(file, loss=f"{own}:huber:targets=real")


def test_what_knows_classes_alone_says_so() -> None:
    observed = pl.observe(pl.Scenario(loss="mse:targets=real", network="mlp:widths=(8,),activation=relu"))
    for model, inference in (("optimal", "refractive"), ("cpl", "map"), ("idlg", "map")):
        hidden = replace(observed, labels=None) if model == "idlg" else observed
        with pytest.raises(BadInput, match="the mean cross entropy, and the client's loss is mse:targets=real"):
            pl.attack(hidden, model, inference)
