"""SPEAR: batches behind a ReLU layer are exact, with their labels; what has no sparse columns is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import from_data

from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import quotient, spear
from pplleak.posterior import Posterior, metrics
from pplleak.studies.attack import attack

WIDE = {"widths": (256,), "activation": "relu"}


def psnr(target: Observation, found: Posterior) -> np.ndarray:
    assert target.truth is not None
    truth = target.truth.numpy()
    return metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth)


@pytest.fixture(scope="module")
def target() -> Observation:
    """Eight digits, not each of which has units of the first layer to itself."""
    return from_data(batch_size=8, settings=WIDE, sigma=1e-9, index=3, dtype="float64")


@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_is_exact_and_its_labels_are_told(target: Observation, shared: bool) -> None:
    assert "share every unit" in quotient.run(None, target, target.client).reasons[0]
    given = target if shared else replace(target, labels=None)
    found = attack.attack(given, "optimal", "spear")
    assert psnr(target, found).min() > 60 and found.converged and target.labels is not None
    assert target.truth is not None
    order = metrics.match(found.mode, target.truth.numpy())
    assert found.y[0, 0][order].tolist() == target.labels.tolist()
    if shared:  # in the order of the labels, or the gradient is not explained
        assert found.y[0, 0].tolist() == target.labels.tolist() and found.attrs["fit"]["fits"]


def test_without_the_masks_that_its_images_have_mixtures_are_taken_for_examples(
    target: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: the sparsest vectors that a search finds are not all examples of their own."""
    monkeypatch.setattr(spear, "_repaired", lambda q, u, inputs: (q, torch.ones(len(q), dtype=torch.bool)))
    assert psnr(target, spear.run(None, target, target.client)).min() < 60


def test_what_could_not_be_told_apart_is_said(target: Observation) -> None:
    """Sixteen examples on 24 units, of which no image can have enough to itself."""
    crowded = from_data(batch_size=16, settings={"widths": (24,), "activation": "relu"}, sigma=1e-9, index=3)
    try:
        found = spear.run(None, crowded, crowded.client, starts=32, rounds=1)
    except BadInput:
        return
    assert psnr(crowded, found).min() < 60 and "could not be told apart" in found.reasons[0]


def test_float32_and_the_rounding_of_its_gradient_are_no_hindrance() -> None:
    target = from_data(batch_size=4, settings=WIDE, sigma=1e-8, index=10)
    assert psnr(target, attack.attack(target, "optimal", "spear")).min() > 60


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"widths": (64,), "activation": "gelu"}}, "no column .* is sparse: without ReLU"),
        ({"settings": {"widths": (3,), "activation": "relu"}}, "has no rank of 4, the size of the batch"),
        ({"network": "convnet", "settings": {"channels": (2, 2), "width": 4}}, "is not a fully connected one"),
        ({"settings": WIDE, "loss": "mse"}, "the mean cross entropy"),
    ],
    ids=["smooth", "narrow", "convolution", "loss"],
)
def test_what_it_cannot_separate_is_refused(change: dict[str, object], said: str) -> None:
    target = from_data(batch_size=4, sigma=1e-9, **change)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=said):
        spear.run(None, target, target.client, rounds=1, starts=32)


def test_one_example_is_its_quotient() -> None:
    target = from_data(settings=WIDE, sigma=1e-9, dtype="float64")
    one, other = (kind.run(None, target, target.client) for kind in (spear, quotient))
    assert torch.allclose(torch.as_tensor(one.mode), torch.as_tensor(other.mode), atol=1e-5)
