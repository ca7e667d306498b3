"""A secret decoder is trained with weights, and sees the brightest image of a batch by them, and by no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import run
from safetensors.torch import load_file, save_file
from scenes import SEPARATING, from_data

from pplleak import data
from pplleak.errors import BadInput
from pplleak.inference import seer as decoder
from pplleak.studies.crafted import crafted, seer

BATCH = 2


def trained(steps: int) -> seer.Trained:
    public = data.public("digits")
    return seer.train(from_data(settings=SEPARATING).client, public.x, public.y, batch_size=BATCH, steps=steps, lr=1e-2)


def error(folder: Path, checkpoint: Path | None, count: int = 20) -> float:
    """Mean squared, of a pixel of the brightest private image."""
    found, mean = [], data.public("digits").x.float().mean(0)
    for k in range(count):
        target = from_data(settings=SEPARATING, checkpoint=checkpoint, index=BATCH * k, batch_size=BATCH, sigma=1e-9)
        assert target.truth is not None
        said = decoder.run(None, target, target.client, decoder=str(folder / "decoder.safetensors"))
        assert f"one example of {BATCH} is decoded" in said.reasons[0]
        wanted = target.truth[target.truth.flatten(1).mean(1).argmax()]
        decoded = torch.as_tensor(said.mode)
        own = decoded[(decoded - mean).flatten(1).abs().sum(1).argmax()]  # the others are the mean
        found.append(float((own - wanted).square().mean()))
    return sum(found) / count


@pytest.mark.slow
def test_a_decoder_sees_the_brightest_image_of_real_batches_by_its_own_weights_alone(tmp_path: Path) -> None:
    made = trained(500)
    assert made.loss < 0.75 * made.baseline
    save_file(made.decoder, tmp_path / "decoder.safetensors")
    save_file({n: t.contiguous() for n, t in made.weights.items()}, tmp_path / "weights.safetensors")
    own, others = error(tmp_path, tmp_path / "weights.safetensors"), error(tmp_path, None)
    assert own < 0.85 * others, (own, others)
    assert crafted.suspicions(made.weights) == []  # no row of them looks like another: the check is no proof


def test_the_command_writes_both_and_its_decoder_attacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["craft", "--attack", "seer", "--steps", "3", "--network.widths", "64", "--batch-size", "2"]) == 0
    assert "the brightest of 2 public images" in capsys.readouterr().out
    assert load_file("decoder.safetensors")["project"].shape == (64, 4810)
    assert 0 < error(tmp_path, Path("crafted.safetensors"), 1) < 1


def test_what_is_no_decoder_of_this_client_is_refused(tmp_path: Path) -> None:
    path, target = tmp_path / "decoder.safetensors", from_data(settings=SEPARATING)
    narrow = from_data(settings={"widths": (8,), "activation": "relu"})
    save_file(trained(2).decoder, path)
    with pytest.raises(BadInput, match="was not trained for this client: 'project'"):
        decoder.run(None, narrow, narrow.client, decoder=str(path))
    save_file({"project": torch.ones(2, 2)}, path)
    with pytest.raises(BadInput, match="holds no decoder: it has no 'first'"):
        decoder.run(None, target, target.client, decoder=str(path))


def test_what_no_decoder_can_be_trained_for_is_refused() -> None:
    public = data.public("digits")
    with pytest.raises(BadInput, match="mean cross entropy"):
        seer.train(from_data(settings=SEPARATING, loss="mse").client, public.x, public.y)
    with pytest.raises(BadInput, match="no batch of 8"):
        seer.train(from_data(settings=SEPARATING).client, public.x[:3], public.y[:3])
