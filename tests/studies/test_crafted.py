"""Crafted weights are written as the library makes them, and the check of weights sees them and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import run
from safetensors.torch import save_file
from scenes import crafted_weights, from_data, of_crafted

from pplleak import data
from pplleak.client import networks, weights
from pplleak.errors import BadInput
from pplleak.inference import imprint
from pplleak.posterior import metrics
from pplleak.studies.crafted import crafted


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crafted_weights(tmp_path_factory.mktemp("crafted"))


def test_only_perceptrons_with_relu_are_crafted() -> None:
    with pytest.raises(BadInput, match="ReLU between them"):
        crafted.imprinted(from_data(settings={"widths": (8,)}).client, data.public("digits").x)


@pytest.mark.parametrize("network", ["mlp", "lenet", "vit"])
def test_initial_and_trained_weights_raise_no_alarm(network: str) -> None:
    torch.manual_seed(0)
    made = networks.get(network)((1, 8, 8), 10)
    assert crafted.suspicions(weights.state(made)) == []
    images = data.public("digits")
    optimiser = torch.optim.Adam(made.parameters(), 3e-3)
    for batch in torch.randint(len(images.x), (10, 64)):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(made(images.x[batch].float()), images.y[batch]).backward()
        optimiser.step()
    assert crafted.suspicions(weights.state(made)) == []


def test_an_imprint_is_seen_in_part_with_noise_and_from_the_command_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    sent = weights.read(checkpoint)[0]
    first = next(n for n, t in sent.items() if t.shape == (64, 64))
    assert crafted.suspicions(sent)[0].rows == 64
    row = sent[first][0].norm() / 8
    half = sent[first].clone() + 0.1 * row * torch.randn(64, 64)
    half[16:] = torch.randn(48, 64)
    assert crafted.suspicions({first: half})[0].rows == 16
    assert run(["check", str(checkpoint)]) == 3 and "point the same way" in capsys.readouterr().out
    plain = tmp_path / "plain.safetensors"
    save_file({n: torch.randn_like(t) for n, t in sent.items()}, plain)
    assert run(["check", str(plain)]) == 0


def test_a_checkpoint_is_written_as_the_library_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["craft", "--network.widths", "64", "--out", "c.safetensors"]) == 0
    target = of_crafted(Path("c.safetensors"), 4, 4)
    found = imprint.run(None, target, target.client)
    truth = target.truth.numpy()  # type: ignore[union-attr]
    assert metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth).max() > 60
