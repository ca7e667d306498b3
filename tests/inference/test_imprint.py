"""Images that are alone in a bin of a crafted layer come out exactly, with their labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scenes import crafted_weights, of_crafted

from pplleak import data
from pplleak.errors import BadInput
from pplleak.inference import imprint
from pplleak.posterior import metrics


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crafted_weights(tmp_path_factory.mktemp("crafted"))


def exact(checkpoint: Path, index: int, batch_size: int) -> list[bool]:
    target = of_crafted(checkpoint, index, batch_size)
    found = imprint.run(None, target, target.client)
    assert target.truth is not None
    truth = target.truth.numpy()
    return (metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth) > 60).tolist()


@pytest.mark.slow
def test_as_many_images_are_exact_as_are_alone_in_their_bin(checkpoint: Path) -> None:
    """(1 − 1/k)^(B − 1) of them, within three standard errors; half as many bins would give less."""
    found = torch.tensor([exact(checkpoint, 14 * k, 16) for k in range(16)]).double().mean(1)
    expected, error = (1 - 1 / 64) ** 15, float(found.std()) / 16**0.5
    assert abs(float(found.mean()) - expected) < 3 * error
    assert abs(float(found.mean()) - (1 - 1 / 16) ** 15) > 3 * error


def test_an_image_that_is_exact_has_its_label(checkpoint: Path) -> None:
    target = of_crafted(checkpoint, 4, 4, labels_shared=False)
    found = imprint.run(None, target, target.client)
    truth = target.truth.numpy()  # type: ignore[union-attr]
    order = metrics.match(found.mode, truth)
    good = metrics.psnr(found.mode[order], truth) > 60
    assert good.sum() >= 3
    assert found.y[0, 0][order][good].tolist() == data.private("digits").batch(4, 4)[1].numpy()[good].tolist()


def test_weights_that_are_not_crafted_are_refused() -> None:
    target = of_crafted(None, 0, 8)
    with pytest.raises(BadInput, match="weights are no imprint"):
        imprint.run(None, target, target.client)
