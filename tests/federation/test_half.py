"""Clients that compute in half precision: what they round off is the noise that their observation says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import one_line, run

import pplleak as pl
from pplleak.federation import half
from pplleak.federation.protection import QUIET
from pplleak.federation.scenario import Scenario, observe
from pplleak.settings import Named

NETWORKS = {"mlp": Named("mlp", {"widths": (32,), "activation": "gelu"}), "lenet": Named("lenet")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_measured_rounding_is_that_of_the_private_batch(network: str, dtype: str) -> None:
    for batch_size in (1, 3):
        made = Scenario(network=NETWORKS[network], protection="none", dtype=dtype, batch_size=batch_size)  # type: ignore[arg-type]
        observed = observe(made)
        assert observed.sigma is not None and observed.client.dtype == observed.g.dtype == torch.float32
        assert observed.labels is not None and observed.truth is not None
        with torch.no_grad():
            off = (observed.g - observed.client.update(observed.truth, observed.labels).materialise()).double()
        error = float(off.square().mean().sqrt())
        assert 1 / 4 < error / observed.sigma < 4
        assert error > 4 * QUIET  # what an adversary would believe in who knows of no rounding
        weights = next(iter(observed.client.parameters.values()))
        assert torch.equal(weights, weights.to(getattr(torch, dtype)).float())
    assert observed.provenance["dtype"] == dtype


def test_noise_of_the_channel_and_rounding_add_up_and_other_channels_are_refused() -> None:
    plain = observe(Scenario(protection="none", dtype="bfloat16")).sigma
    noisy = observe(Scenario(protection="gaussian:sigma=0.001", dtype="bfloat16")).sigma
    assert plain is not None and noisy is not None and plain < 5e-4
    assert noisy == pytest.approx((1e-6 + plain**2) ** 0.5, rel=0.01)
    with pytest.raises(pl.errors.BadInput, match="no noise of a known σ"):
        half.noisier(Scenario(protection="dpsgd:noise_multiplier=1,clip=1").protection.filled(), 0.1)


def test_an_attack_on_a_bfloat16_client_is_explained_by_its_rounding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["attack", "--dtype", "bfloat16", "--channel", "none", "--network.widths", "16", "--inference", "map",
             "--inference.steps", "150", "--inference.starts", "1"]  # fmt: skip
    found = []
    for name, believed in (("right", []), ("wrong", ["--model.sigma", "1e-6"])):
        run([*words, *believed, "--out", str(tmp_path / name)])
        found.append(json.loads((tmp_path / name / "summary.json").read_text()))
    right, wrong = found
    assert 0.1 < right["chi2_per_entry"] < 10 and right["psnr_map"] > 40
    assert wrong["chi2_per_entry"] > 1000
    capsys.readouterr()
    one_line(["train", "--dtype", "float16"], capsys, "float32 or float64")
