"""Labels recovered from the last layer's gradient, against the truth on real digits; and no rule is silently wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import command as run
from conftest import own, tiny
from scenes import build_client, known
from torch import Tensor, nn

from pplleak import data
from pplleak.client import Client
from pplleak.client.training import LocalTraining
from pplleak.density import label_recovery
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation

DIGITS = data.private("digits", None)
PUBLIC = data.public("digits", None, without=range(300)).x


def client(network: str, **settings: object) -> Client:
    return build_client(network, settings, (1, 8, 8), 10)


def batch(start: int, size: int) -> tuple[Tensor, Tensor]:
    return DIGITS.batch(start, size)


def shared(client: Client, start: int, size: int, sigma: float = 0.0) -> tuple[Observation, list[int]]:
    """The gradient of digits start, start + 1, … in noise, and their labels in ascending order."""
    x, y = batch(start, size)
    g = client.update(x, y).materialise()
    noise = torch.randn(g.shape, generator=torch.Generator().manual_seed(start))
    return Observation(g + sigma * noise, size), sorted(y.tolist())


NETWORKS = {
    "mlp, gelu": lambda: client("mlp"),
    "mlp, relu": lambda: client("mlp", activation="relu"),
    "lenet, sigmoid": lambda: client("lenet"),
    "convnet": lambda: client("convnet"),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_labels_of_digits_are_recovered(network: str, size: int) -> None:
    victim = NETWORKS[network]()
    for start in range(0, 5 * size, size):
        observed, truth = shared(victim, start, size)
        found = label_recovery.recover(victim, observed, public=PUBLIC)
        assert found.labels.tolist() == truth
        assert found.sure


def test_the_bias_gradient_names_the_label_by_its_sign_alone() -> None:
    victim = client("mlp")
    for start in range(10):
        observed, truth = shared(victim, start, 1)
        bias = victim.split(observed.g)[label_recovery.last_layer(victim).bias]
        assert torch.nonzero(bias < 0).flatten().tolist() == truth
        assert label_recovery.idlg(bias).labels.tolist() == truth


@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_under_noise_the_confidence_of_one_label_is_how_often_it_is_right(sigma: float) -> None:
    """p(y | ∂ℓ/∂b) where all labels and all p are alike; a confidence of 1 for all is rejected by the same check."""
    generator = torch.Generator().manual_seed(0)
    right, said = [], []
    for k in range(2000):
        y = k % 10
        p = torch.full((10,), 0.1, dtype=torch.float64)
        noise = torch.randn(10, generator=generator, dtype=torch.float64)
        found = label_recovery.idlg(p - F.one_hot(torch.tensor(y), 10) + sigma * noise, sigma)
        assert found.confidence is not None
        right.append(int(found.labels) == y)
        said.append(found.confidence)
    error = math.sqrt(max(np.var(right), 1e-3) / len(right))
    assert np.mean(said) < np.mean(right) + 5 * error, "over-confident"
    if sigma > 0.2:
        assert np.mean(right) < 1 - 5 * error, "the case has no power: a confidence of 1 would pass"


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_without_a_bias_the_longest_row_is_that_of_the_label(activation: str) -> None:
    victim = client("mlp", activation=activation)
    layer = label_recovery.last_layer(victim)
    for start in range(20):
        observed, truth = shared(victim, start, 1, sigma=1e-3)
        weight = victim.split(observed.g)[layer.weight]
        found = label_recovery.idlg_from_weight(weight, 1e-3)
        assert found.labels.tolist() == truth and found.sure
        rows = weight @ weight.mT  # iDLG's own words: the one row that points against all others
        assert (rows[truth[0]][torch.arange(10) != truth[0]] < 0).all()


def test_two_classes_without_a_bias_need_non_negative_inputs() -> None:
    a = torch.tensor([0.3, 0.1, 0.5])
    for label in (0, 1):
        delta = torch.tensor([0.4, 0.6]) - F.one_hot(torch.tensor(label), 2)
        weight = torch.outer(delta, a)
        assert label_recovery.idlg_from_weight(weight, non_negative=True).labels.tolist() == [label]
        with pytest.raises(BadInput, match="one sign for both labels"):
            label_recovery.idlg_from_weight(weight)


def test_llg_is_its_algorithm_and_right_where_all_probabilities_are_alike() -> None:
    """At p = 1/K and one a for all, r_c = s (1/K − n_c / B): written out, for every count of three classes."""
    for y in ([0], [0, 1], [0, 0, 2], [1, 1, 1], [0, 1, 2, 2]):
        n = torch.bincount(torch.tensor(y), minlength=10)
        rows = 3.0 * (0.1 - n / len(y))
        assert label_recovery.llg(rows, len(y)).labels.tolist() == y
        assert label_recovery.llg(rows, len(y)).confidence is None


def test_llg_takes_a_batch_only_behind_non_negative_activations() -> None:
    relu, gelu = client("mlp", activation="relu"), client("mlp", activation="gelu")
    hits = 0
    for start in range(0, 40, 2):
        observed, truth = shared(relu, start, 2)
        found = label_recovery.recover(relu, observed)
        assert found.rule.startswith("LLG") and not found.sure
        hits += found.labels.tolist() == truth
    assert hits >= 18
    with pytest.raises(BadInput, match="either sign"):
        label_recovery.recover(gelu, shared(gelu, 0, 2)[0])
    with pytest.raises(BadInput, match="negative"):
        label_recovery.llg(torch.ones(10), 2)


def test_counts_come_from_the_row_sums_where_the_last_layer_has_no_bias() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10, bias=False))

    victim = own(make, (1, 8, 8), 10, dtype=torch.float32)
    hits = 0
    for start in range(0, 80, 4):
        observed, truth = shared(victim, start, 4)
        found = label_recovery.recover(victim, observed, public=PUBLIC)
        assert found.rule == "counts, from the last weight"
        hits += found.labels.tolist() == truth
        assert not found.sure
    assert hits >= 10  # of 20; by chance one of 715 count vectors


@pytest.mark.parametrize("case", ["noise", "trained"])
def test_counts_that_the_gradient_leaves_open_are_not_sure(case: str) -> None:
    """Where σ is as large as an example's pull, or p has learnt the class: the counts are open, and said to be."""
    victim, sigma = client("mlp"), 0.1 if case == "noise" else 0.0
    if case == "trained":
        network = victim.network.requires_grad_()
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        x, y = DIGITS.batch(0, 296)
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
        victim = Client(network, (1, 8, 8), 10)
    right, said = [], []
    for start in range(0, 296, 4):
        observed, truth = shared(victim, start, 4, sigma)
        found = label_recovery.recover(victim, observed, sigma=sigma, public=PUBLIC)
        assert found.confidence is not None
        right.append(found.labels.tolist() == truth)
        said.append(found.confidence)
    error = math.sqrt(max(np.var(right), 1e-2) / len(right))
    assert np.mean(right) < 1 - 3 * error, "a confidence of 1 would pass"
    if case == "noise":
        assert np.mean(said) < np.mean(right) + 3 * error, "over-confident"
    else:  # an upper bound: right in no batch, and said to be so in one of fifteen
        assert max(said) < 0.2


def test_what_is_not_one_cross_entropy_gradient_is_refused() -> None:
    victim = client("mlp")
    two = replace(shared(victim, 0, 2)[0], batch_size=1)
    with pytest.raises(BadInput, match="larger batch"):
        label_recovery.recover(victim, two)
    layer = label_recovery.last_layer(victim)
    with pytest.raises(BadInput, match="rank 1"):
        label_recovery.idlg_from_weight(victim.split(two.g)[layer.weight])
    x, y = batch(0, 1)
    logits = victim.network(x)[0]
    squared = 2 * (logits - F.one_hot(y[0], 10))  # the gradient of a squared error at the last bias
    with pytest.raises(BadInput, match="another loss"):
        label_recovery.idlg(squared)
    with pytest.raises(BadInput, match="another loss"):
        label_recovery.counts(squared, torch.ones(len(PUBLIC)), victim.network(PUBLIC).softmax(-1), 4)


def test_a_client_whose_gradient_does_not_tell_is_refused() -> None:
    victim = client("mlp")
    observed, _ = shared(victim, 0, 1)
    with pytest.raises(BadInput, match="not behind 'sign'"):
        label_recovery.recover(victim, observed, channel="sign")
    with pytest.raises(BadInput, match="local training"):
        label_recovery.recover(replace(victim, local=LocalTraining(0.1)), observed)
    normed = own(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.LayerNorm(3)), (1, 2, 2))
    with pytest.raises(BadInput, match="does not end in a linear layer"):
        label_recovery.recover(normed, Observation(torch.zeros(normed.update_size)))


def test_a_target_keeps_what_was_recovered_and_whether_it_is_right() -> None:
    victim = tiny(classes=4)
    x, y = torch.rand(1, 1, 2, 2, dtype=torch.float64), torch.tensor([2])
    g = victim.update(x, y).materialise()
    target = label_recovery.recovered(known(victim, Observation(g, 1, y), sigma=1e-3))
    assert target.labels is not None and target.labels.tolist() == [2]
    assert target.provenance["recovered_labels"]["right"] is True
    wrong = label_recovery.recovered(known(victim, Observation(g, 1, torch.tensor([1])), sigma=1e-3))
    assert wrong.labels is not None and wrong.labels.tolist() == [2]
    assert wrong.provenance["recovered_labels"]["right"] is False
    blind = label_recovery.recovered(known(victim, Observation(g, 1), sigma=1e-3))
    assert blind.provenance["recovered_labels"]["right"] is None


# -- on the command line -------------------------------------------------------------------------------------------

MAP = ["--inference", "map", "--inference.starts", "2", "--inference.steps", "5"]


@pytest.mark.slow
def test_an_attack_recovers_the_labels_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["attack", "--labels", "recovered", "--batch-size", "2", "--sigma", "0.01", "--out", str(tmp_path), *MAP]
    assert run(*argv) == 0
    said = json.loads((tmp_path / "summary.json").read_text())["recovered_labels"]
    assert said["labels"] == sorted(DIGITS.batch(0, 2)[1].tolist()) and said["right"] and said["sure"]
    assert said["rule"] == "counts, from the last bias"
    shown = capsys.readouterr().out
    assert "labels, recovered" in shown and "right" in shown


@pytest.mark.slow
def test_recovered_labels_that_are_a_guess_are_a_doubt(tmp_path: Path) -> None:
    argv = ["attack", "--labels", "recovered", "--batch-size", "4", "--sigma", "1", "--out", str(tmp_path), *MAP]
    assert run(*argv) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert not summary["recovered_labels"]["sure"] and not summary["converged"]
    assert any("labels" in doubt for doubt in summary["doubts"])


@pytest.mark.slow
def test_an_observation_without_labels_has_them_recovered(tmp_path: Path) -> None:
    file = str(tmp_path / "o.safetensors")
    assert run("observe", "--labels", "unknown", "--index", "5", "--out", file) == 0
    assert run("attack", "--observed", file, "--labels", "recovered", "--out", str(tmp_path / "a"), *MAP) == 0
    said = json.loads((tmp_path / "a" / "summary.json").read_text())["recovered_labels"]
    assert said["labels"] == DIGITS.batch(5, 1)[1].tolist() and said["right"] is None
    assert run("observe", "--labels", "recovered", "--out", file) == 2
