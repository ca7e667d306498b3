"""What the server does not know of local training is found by evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from conftest import batch_of, tiny

import pplleak as pl
from pplleak import programs
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.studies.attack import causes, evidence, training
from pplleak.studies.attack.attack import believe

TRUE = pl.LocalTraining(0.3, epochs=2, batch_size=2, shares="negative")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches as long as these networks need."""
    monkeypatch.setattr(evidence, "STARTS", 2)
    monkeypatch.setattr(evidence, "STEPS", 30)


def scene(local: pl.LocalTraining = TRUE, sigma: float = 1e-3) -> Observation:
    """Three images of four pixels: an evidence takes a second."""
    module = tiny(activation="tanh", widths=(8,)).network.requires_grad_(True)
    client = Client(module, (1, 2, 2), local=local)
    x, y = batch_of(client, size=3)
    with torch.no_grad():
        g = client.update(x, y).materialise()
    noise = torch.randn(g.shape, dtype=g.dtype, generator=torch.Generator().manual_seed(1))
    return Observation(g + sigma * noise, 3, y, client, pl.Protection.parse(f"gaussian:sigma={sigma}"), truth=x)


def bound(observed: Observation) -> Any:
    return believe(programs.load("models", "optimal"), observed, {"prior": "uniform"})


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd:momentum=0.9", "adamw:eps=0.1"])
def test_a_factor_of_the_rate_is_that_of_a_client_with_such_a_rate(optimizer: str) -> None:
    local = pl.LocalTraining(0.1, 3, optimizer=pl.Named.parse(optimizer), shares="rate")
    module = tiny(activation="tanh").network
    fast = Client(module.requires_grad_(True), (1, 2, 2), local=replace(local, lr=0.25))
    slow = Client(module.requires_grad_(True), (1, 2, 2), local=local)
    x, y = batch_of(slow, size=2)
    rate = torch.tensor([1.0, 2.5], dtype=torch.float64)
    found = slow.update(x, y, rate=rate).materialise()
    torch.testing.assert_close(found[1], fast.update(x, y).materialise(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0], slow.update(x, y).materialise(), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found[0], found[1], rtol=1e-2)


@pytest.mark.slow
def test_epochs_and_batches_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six trainings the true one has nearly all of the probability, and only it explains the gradient."""
    monkeypatch.setattr(training, "EPOCHS", (1, 2))
    observed = scene()
    unsure = replace(observed, client=replace(observed.client, local=pl.LocalTraining(0.3, shares="negative")))
    tried = training.weigh(bound(unsure), unsure, ("epochs", "batch_size"))
    assert len(tried) == 6 and sum(t.weight for t in tried) == pytest.approx(1)
    assert tried[0].training == TRUE and tried[0].weight > 0.95
    assert [t.fits for t in tried] == [True] + [False] * 5


@pytest.mark.slow
def test_a_rate_is_found() -> None:
    observed = scene()
    unsure = replace(observed, client=replace(observed.client, local=replace(TRUE, lr=0.1)))
    found, said = training.told(bound(unsure), unsure, ("lr",))
    assert found.client.local is not None and found.client.local.lr == pytest.approx(0.3, rel=0.1)
    assert said.startswith("local training, the likeliest of 1: rate 0.") and "none of them" not in said
    assert replace(found.client.local, lr=0.3) == TRUE


@pytest.mark.slow
@pytest.mark.parametrize(("believed", "name", "words"), [
    (replace(TRUE, shares="difference"), "shares", "θ_before − θ_after"),
    (replace(TRUE, lr=0.1), "rate", "times the local learning rate"),
    (replace(TRUE, batch_size=None), "local_batch_size", "local batches of"),
])  # fmt: skip
def test_a_misfit_is_explained_by_them(
    believed: pl.LocalTraining, name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "STARTS", 1)
    monkeypatch.setattr(evidence, "POLISH", 2)
    observed = scene()
    observed = replace(observed, client=replace(observed.client, local=believed))
    tried = [a for a in causes.alternatives(bound(observed), observed) if a.name == name]
    assert any(words in a.words for a in tried)
    own = evidence.evidence(evidence.Alternative("", "", bound(observed), observed.client, observed))
    best = max((evidence.evidence(a) for a in tried), key=lambda e: e.log)
    assert best.log > own.log + 10 and best.p > own.p


def test_what_cannot_be_open_is_one_line() -> None:
    with pytest.raises(BadInput, match="'momentum' of local training cannot be left open"):
        training.candidates(TRUE, ("momentum",), 4)  # type: ignore[arg-type]
    gradient = pl.observe(pl.Scenario(network="mlp:widths=(4,)"))
    with pytest.raises(BadInput, match="nothing of local training is open"):
        training.weigh(bound(gradient), gradient, ("epochs",))
    with pytest.raises(BadInput, match="more than 64: say one of"):
        training.candidates(TRUE, ("epochs", "batch_size", "shares"), 64)


@pytest.mark.slow
def test_the_command_line_says_which_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "WIDEST", 0)  # no Hessian: the highest densities are compared
    monkeypatch.setattr(evidence, "STEPS", 10)
    local = ["--local-lr", "0.3", "--local-epochs", "1", "--local-batch-size", "1", "--batch-size", "2"]
    words = ["attack", *local, "--network.widths", "16", "--sigma", "0.003", "--inference", "map", "--local-unknown",
             "shares", "--inference.starts", "1", "--inference.steps", "40", "--out", str(tmp_path)]  # fmt: skip
    assert run(words) == 0
    assert "the likeliest of 3: difference (probability 1" in capsys.readouterr().out
    kept = pl.Posterior.load(tmp_path / "posterior.nc").attrs["trainings"]
    assert kept[0]["local"].get("shares", "difference") == "difference" and len(kept) == 3
