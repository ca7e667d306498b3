"""Soft labels of one example are read off its last layer exactly, and what cannot be read is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from torch import Tensor

from pplleak.client import Client
from pplleak.density import label_recovery, soft_labels
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation, with_targets

LOSS = "cross_entropy:targets=probabilities"
SMOOTHED, MIXED = [0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3], [0.3, 0.7, 0.0]


def client(loss: str = LOSS) -> Client:
    made = tiny().network.requires_grad_()
    return Client(made, (1, 2, 2), 3, loss=loss)


def shared(q: list[float], size: int = 1, loss: str = LOSS) -> Observation:
    base = client(loss)
    told, labels = with_targets(base, [q] * size, size)
    assert labels is not None
    x = torch.rand(size, 1, 2, 2, dtype=torch.float64)
    g = told.update(x, labels).materialise()
    return Observation(g, size, None, base, truth=x)


@pytest.mark.parametrize("loss", [LOSS, f"{LOSS},label_smoothing=0.2"])
@pytest.mark.parametrize("q", [SMOOTHED, MIXED, [1.0, 0.0, 0.0]], ids=["smoothed", "mixed", "hard"])
def test_probabilities_are_exact(q: list[float], loss: str) -> None:
    found = label_recovery.recovered(shared(q, loss=loss))
    assert found.labels is not None and found.client.targets is not None
    assert torch.allclose(found.client.targets[found.labels[0]], torch.tensor(q, dtype=torch.float64), atol=1e-9)


def test_the_wrong_features_give_other_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: δ alone (the classes' mean in the place of softmax) is not what is read."""
    target = shared(MIXED)
    delta: Tensor = target.client.split(target.g)["3.bias"]
    assert not torch.allclose(1 / 3 - delta, torch.tensor(MIXED, dtype=torch.float64), atol=1e-2)


def test_batches_noise_and_other_losses_are_refused() -> None:
    with pytest.raises(BadInput, match="one example, not of 2"):
        soft_labels.recovered(shared(MIXED, 2))
    target = shared(MIXED)
    with pytest.raises(BadInput, match="no probabilities"):
        soft_labels.recovered(replace(target, g=target.g + torch.randn_like(target.g)))
    hard = tiny()
    with pytest.raises(BadInput, match="cross entropy without weights"):
        soft_labels.of_one(hard, Observation(torch.zeros(hard.update_size), client=hard))
