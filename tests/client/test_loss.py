"""The losses of a client against torch's own, lazy and materialised, and what refuses those that it does not know."""

from __future__ import annotations

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
from pplleak import channels
from pplleak.client import Client, networks
from pplleak.client.loss import names
from pplleak.client.training import LocalTraining
from pplleak.density import label_recovery
from pplleak.errors import BadInput
from pplleak.settings import Named

WEIGHTS = (0.5, 1.0, 4.0)


def trainable(**how: Any) -> nn.Module:
    return tiny(**how).network.requires_grad_(True)


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, 3).double()


TORCH = {  # what a training script would have written
    "cross_entropy": nn.CrossEntropyLoss(),
    "cross_entropy:label_smoothing=0.2": nn.CrossEntropyLoss(label_smoothing=0.2),
    "cross_entropy:reduction=sum": nn.CrossEntropyLoss(reduction="sum"),
    f"cross_entropy:weights={WEIGHTS}": nn.CrossEntropyLoss(torch.tensor(WEIGHTS, dtype=torch.float64)),
    f"cross_entropy:weights={WEIGHTS},reduction=sum": nn.CrossEntropyLoss(
        torch.tensor(WEIGHTS, dtype=torch.float64), reduction="sum"
    ),
    "bce": lambda logits, y: nn.BCEWithLogitsLoss()(logits, one_hot(y)),
    "mse": lambda logits, y: nn.MSELoss()(logits, one_hot(y)),
    "mse:reduction=sum": lambda logits, y: nn.MSELoss()(logits, one_hot(y)) * len(y),
}


def plain(client: Client, x: Tensor, y: Tensor, loss: str) -> Tensor:
    parameters = [p.clone().requires_grad_() for p in client.network.parameters()]
    named = dict(zip(dict(client.network.named_parameters()), parameters, strict=True))
    value = TORCH[loss](torch.func.functional_call(client.network, named, (x,)), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


@pytest.mark.parametrize("loss", TORCH)
def test_the_update_is_the_gradient_of_torchs_loss(loss: str) -> None:
    client = Client(trainable(), (1, 2, 2), loss=loss)
    x, y = batch_of(client, (2,), size=3)
    y = torch.tensor([[0, 2, 2], [1, 0, 2]])
    expected = torch.stack([plain(client, xs, ys, loss) for xs, ys in zip(x, y, strict=True)])
    assert client.lazy
    lazy, dense = client.update(x, y), client.materialised(x, y)
    for found in (lazy.materialise(), dense.materialise()):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    wrong = Client(trainable(), (1, 2, 2), loss="cross_entropy:label_smoothing=0.1").update(x, y).materialise()
    assert not torch.allclose(wrong, expected, rtol=1e-3)


@pytest.mark.parametrize("loss", [f"cross_entropy:weights={WEIGHTS}", "mse", "cross_entropy:reduction=sum"])
def test_local_training_steps_along_it(loss: str) -> None:
    client = Client(trainable(), (1, 2, 2), loss=loss, local=LocalTraining(0.1, 2, 2))
    x, y = batch_of(client, size=4)
    first = plain(client, x[:2], y[:2], loss)
    moved = client.update(x, y).materialise()
    once = Client(trainable(), (1, 2, 2), loss=loss, local=LocalTraining(0.1, 1, 2)).update(x, y).materialise()
    torch.testing.assert_close(once, -0.1 * first, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(moved, once)


def test_every_loss_is_held_to_torchs() -> None:
    by_transformers = {"next_token"}  # tests/client/test_next_token.py
    assert set(names()) == {Named.parse(loss).name for loss in TORCH} | by_transformers


@pytest.mark.parametrize(("loss", "said"), [
    ("mze", "did you mean mse"), ("mse:smoothing=1", "no setting 'smoothing'"),
    ("mse:reduction=max", "mean or sum"), ("cross_entropy:label_smoothing=2", "between 0 and 1"),
    ("mse:weights=(1.0,2.0)", "2 weights, and the network 3 classes"),
    ("mse:weights=(1.0,-2.0,1.0)", "one positive number"),
])  # fmt: skip
def test_a_loss_that_is_none_is_one_line(loss: str, said: str) -> None:
    with pytest.raises(BadInput, match=said.replace("(", r"\(")):
        Client(trainable(), (1, 2, 2), loss=loss)


def test_what_knows_the_cross_entropy_alone_says_so() -> None:
    observed = pl.observe(pl.Scenario(loss="mse", network="mlp:widths=(8,),activation=relu"))
    with pytest.raises(BadInput, match=r"labels are read off the gradient of the mean cross entropy.*is mse"):
        label_recovery.recovered(observed)
    for model, inference in (("optimal", "refractive"), ("cpl", "map")):
        with pytest.raises(BadInput, match="the mean cross entropy, and the client's loss is mse"):
            pl.attack(observed, model, inference)
    summed = replace(observed.client, loss="cross_entropy:reduction=sum")
    with pytest.raises(BadInput, match="dpsgd averages"):
        channels.get("dpsgd").of(summed.update(observed.truth, observed.labels), summed, 1, None)  # type: ignore[arg-type]


def test_inputs_normalised_outside_the_network_are_a_setting() -> None:
    client = tiny(shape=(3, 2, 2))
    x, y = batch_of(client, size=2)
    means, sds = torch.tensor([0.3, 0.4, 0.5]).double(), torch.tensor([0.2, 0.25, 0.5]).double()
    module = networks.normalised(trainable(shape=(3, 2, 2)), (*means.tolist(), *sds.tolist()), (3, 2, 2))
    own = Client(module, (3, 2, 2))
    u = client.update((x - means[:, None, None]) / sds[:, None, None], y).materialise()
    for found in (own.update(x, y), own.materialised(x, y)):
        torch.testing.assert_close(found.materialise(), u, rtol=1e-10, atol=1e-12)
    assert list(own.layers) == list(client.layers) and own.lazy
    for wrong, said in (((0.5,), "not 1 numbers"), ((0.5, 0.0), "positive sds"), ((float("nan"), 1.0), "finite means")):
        with pytest.raises(BadInput, match=said):
            networks.normalised(tiny().network, wrong, (1, 2, 2))


@pytest.mark.slow
def test_loss_and_normalisation_travel_with_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "o.safetensors", tmp_path / "attack"
    words = ["--loss", "mse:reduction=sum", "--normalise", "0.3", "0.25", "--network.widths", "8", "--sigma", "0.01"]
    assert run(["observe", *words, "--out", str(file)]) == 0
    observed = pl.load(file)
    assert observed.client.loss == "mse:reduction=sum" and observed.provenance["normalise"] == [0.3, 0.25]
    again = pl.observe(pl.Scenario(loss="mse:reduction=sum", normalise=(0.3, 0.25), network="mlp:widths=(8,)",
                                   protection="gaussian:sigma=0.01"))  # fmt: skip
    assert torch.equal(again.g, observed.g)
    attack = ["attack", "--observed", str(file), "--inference", "map", "--inference.starts", "2", "--inference.steps",
              "200", "--out", str(out)]  # fmt: skip
    assert run(attack) == 0 and pl.Posterior.load(out / "posterior.nc").summary["fits"] is True
    one_line([*attack, "--loss", "bce"], capsys, "leave --loss and --normalise to `pplleak observe`")
