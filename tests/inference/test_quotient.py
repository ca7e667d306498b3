"""The first layer's quotient: exact without noise, the best rank-1 fit with it, and refused where it does not hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import batch_of, own, tiny
from scenes import from_data
from torch import nn

from pplleak.client.training import LocalTraining
from pplleak.density.first_layer import first_layer
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import quotient
from pplleak.posterior import metrics
from pplleak.studies.attack import attack


def psnr(target: Observation, inference: str = "quotient") -> float:
    found = attack.attack(target, "optimal", inference)
    assert found.kind == "point" and found.converged and target.truth is not None
    truth = target.truth.numpy()
    return float(metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth).min())


@pytest.mark.parametrize("defence", ["", "precode", "inf2guard"])
def test_one_image_is_exact_whatever_lies_behind_the_first_layer(defence: str) -> None:
    target = from_data(defence=defence, sigma=1e-9, index=3)
    assert psnr(target) > 60
    hidden = replace(target, labels=None)
    assert attack.attack(hidden, "optimal", "quotient").y.item() == target.labels


@pytest.mark.parametrize("defence", ["", "precode", "inf2guard"])
@pytest.mark.parametrize("size", [2, 4])
def test_images_of_a_batch_are_exact_where_units_are_active_for_one_alone(defence: str, size: int) -> None:
    settings = {"widths": (256,), "activation": "relu"}
    assert psnr(from_data(defence=defence, batch_size=size, settings=settings, sigma=1e-9, index=3)) > 60


def test_where_units_are_active_for_all_it_says_so() -> None:
    with pytest.raises(BadInput, match="active for several examples"):
        attack.attack(from_data(batch_size=2, sigma=1e-9), "optimal", "quotient")


def test_images_that_share_every_unit_are_told() -> None:
    """Two images that are one have the same active units: each row's quotient is that image."""
    target = from_data(batch_size=2, settings={"widths": (64,), "activation": "relu"}, sigma=1e-9)
    assert target.truth is not None
    x, y = target.truth[:1].expand(2, -1, -1, -1), torch.tensor([1, 2])
    observed = Observation(target.client.update(x, y).materialise(), 2, y)
    found = quotient.run(None, observed, target.client)
    assert "1 of 2 images share every unit" in found.reasons[0] and not found.converged


def test_under_noise_it_is_the_rank_one_fit_and_closer_than_the_quotient_of_any_row() -> None:
    client = tiny(shape=(1, 4, 4), widths=(16,))
    x, y = batch_of(client)
    generator = torch.Generator().manual_seed(0)
    u = client.update(x, y).materialise()
    noise = 0.02 * u.norm() / len(u) ** 0.5
    errors, singles = [], []
    for _ in range(200):
        g = u + noise * torch.randn(u.shape, dtype=u.dtype, generator=generator)
        rows = first_layer(client, g)
        found = quotient.run(None, Observation(g, 1, y), client)
        errors.append(np.square(found.mode - x.numpy()).mean())
        best = rows[rows[:, -1].abs().argmax()]
        singles.append(float((best[:-1] / best[-1] - x.flatten()).square().mean()))
    strength = first_layer(client, u)[:, -1].norm()  # ‖δ‖
    # the error of x̂ is σ/‖δ‖ times unit noise, along x̂ also that of the bias
    predicted = float(noise / strength) ** 2 * (1 + float(x.square().mean()))
    spread = 5 * np.std(errors, ddof=1) / np.sqrt(len(errors))
    assert abs(np.mean(errors) - predicted) < spread + 0.02 * predicted
    assert np.mean(singles) > np.mean(errors) + spread, "the check has no power"


def test_a_first_layer_that_is_not_fully_connected_or_hides_its_bias_is_refused() -> None:
    for made, shape, said in (
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3)), (1, 2, 2), "Conv2d"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), (1, 2, 2), "not a fully connected"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Softplus(), nn.Linear(4, 3)), (1, 2, 2), "the image as it is"),
    ):
        client = own(made, shape)
        with pytest.raises(BadInput, match=said):
            quotient.run(None, Observation(torch.zeros(client.update_size), 1, torch.tensor([0])), client)
    local = from_data(local=LocalTraining(0.1), sigma=1e-9)
    with pytest.raises(BadInput, match="shares local training"):
        attack.attack(local, "optimal", "quotient")
