"""A client whose adapters are peft's: a sentence is read off their gradient as off our own adapters'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from texts import written

from pplleak.errors import BadInput
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack

EXAMPLE = f"{Path(__file__).parents[2] / 'docs' / 'examples' / 'my_lora.py'}:build"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "settings"),
    [(EXAMPLE, {"begun": False}), (EXAMPLE, {"begun": True}), ("gpt2", {"lora": 32, "lora_begun": True})],
    ids=["first step", "later", "ours"],
)
def test_a_sentence_is_read_off_adapters(network: str, settings: dict[str, bool], tmp_path: Path) -> None:
    if network == EXAMPLE:
        pytest.importorskip("peft")
    channel = Named("gaussian", {"sigma": 1e-9})
    observed = observe(
        Scenario(str(written(tmp_path / "notes.txt")), network=Named(network, settings), dtype="float64",
                 protection=Protection(channel=channel))
    )  # fmt: skip
    assert observed.truth is not None and observed.client.path == "lazy"
    truth = observed.truth.numpy()
    assert (attack(observed, inference="dager").mode == truth).all()
    noise = torch.randn(len(observed.g), generator=torch.Generator().manual_seed(0)).to(observed.g)
    with pytest.raises(BadInput):  # noise spans everything
        attack(replace(observed, g=noise), inference="dager")
