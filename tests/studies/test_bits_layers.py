"""Bits by layer: a part tells what the closed form says, and never more than the whole."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from command_line import run
from scenes import from_data

from pplleak.errors import BadInput
from pplleak.models import linear_gaussian
from pplleak.posterior import information
from pplleak.studies.attack.attack import attack
from pplleak.studies.bits import layers
from pplleak.studies.risk.risk import from_model


@pytest.mark.slow
def test_the_bits_of_a_layer_are_those_of_the_closed_form_and_less_than_all() -> None:
    """Softmax regression from zero weights: the weight is affine in the image, and the bias tells nothing of it."""
    base = from_data(network="linear", sigma=0.05, dtype="float64")
    drawn = from_model(base, "linear_gaussian", {"sigma": 0.05}, 0)
    bits = {}
    for name in (layers.ALL, *base.client.layers):
        seen = layers.alone(drawn, base.client.layers if name == layers.ALL else [name])
        assert seen.g.shape == (seen.client.update_size,)
        found = attack(seen, "linear_gaussian", "laplace", beliefs={"sigma": 0.05}, settings={"draws": 50, "steps": 50})
        exact = linear_gaussian.exact_posterior(seen.client, seen, sigma=0.05)
        gain = information.Estimate(information.log_likelihood(_density(seen), drawn.truth) - exact.log_evidence, 0.0)
        assert found.attrs["bits"] == pytest.approx(gain.bits().value, abs=1e-3)
        bits[name] = exact.mutual_information
    weight, bias = base.client.layers
    assert bits[bias] == pytest.approx(0, abs=1e-9) and 1 < bits[weight] <= bits[layers.ALL] + 1e-9


def _density(seen):  # type: ignore[no-untyped-def]
    import functools

    from pplleak.density import build

    return build(functools.partial(linear_gaussian.model, sigma=0.05), seen.client, seen)


def test_a_part_is_the_part_of_the_update_that_is_its_own() -> None:
    target = from_data(settings={"widths": (5, 4)}, sigma=1e-9, dtype="float64")
    client, truth, labels = target.client, target.truth, target.labels
    assert truth is not None and labels is not None
    parts = layers.parts(client)
    assert len(parts) == 4 and sorted(n for k, p in parts.items() if k != layers.ALL for n in p) == sorted(
        client.layers
    )
    for names in parts.values():
        seen = layers.alone(target, names)
        own = seen.client.update(truth[None], labels[None]).materialise()[0]
        assert torch.allclose(own, seen.g, atol=1e-7)


def test_layers_are_compared_on_the_draws_that_are_complete() -> None:
    rows = [{"draw": d, "layer": n, "bits": b, "converged": True}
            for d, n, b in ((0, layers.ALL, 4.0), (0, "a", 2.0), (1, layers.ALL, 40.0))]  # fmt: skip
    assert [(r["bits"], r["share"]) for r in layers.summarise(rows)] == [(4.0, 1.0), (2.0, 0.5)]


def test_what_mixes_entries_is_refused() -> None:
    target = from_data(channel="dpsgd", channel_settings={"clip": 1.0}, sigma=None)
    with pytest.raises(BadInput, match="every entry by itself"):
        layers.alone(target, list(target.client.layers)[:1])


@pytest.mark.slow
def test_the_command_goes_on_and_draws_a_bar_a_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bits"
    tiny = ["--network.widths", "3", "--inference.draws", "20", "--inference.steps", "20", "--inference.starts", "1"]
    for count in ("1", "1"):
        assert run(["bits", "--by-layer", "--count", count, "--out", str(out), *tiny]) == 0
    rows = list(csv.DictReader((out / "layers.csv").open()))
    assert len(rows) == 3 and rows[0]["layer"] == layers.ALL
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert "of all layers'" in capsys.readouterr().out
