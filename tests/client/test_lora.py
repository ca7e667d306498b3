"""Adapters of low rank on a network of text: what their gradient still says, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from torch import nn

from pplleak import data
from pplleak.client import Client, networks
from pplleak.density import embedding_rows
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import dager, isir
from pplleak.posterior import tokens


def shared(path: Path, network: str, rank: int, begun: bool, sigma: float = 1e-12) -> tuple[Observation, Any]:
    return texts.shared(path, network, sigma=sigma, lora=rank, lora_begun=begun)


@pytest.mark.parametrize("network", ["bert", "gpt2"])
def test_only_adapters_and_the_last_layer_are_shared_and_the_rows_name_nothing(network: str, tmp_path: Path) -> None:
    observed, _ = shared(texts.few(tmp_path / "few.txt"), network, 4, begun=False)
    kept = set(observed.client.layers)
    assert all(n.endswith((".a.weight", ".b.weight")) or n.startswith("classifier") for n in kept)
    assert len(kept) == (2 * 2 * 2 if network == "bert" else 2 * 2) + 2 and observed.client.path == "lazy"
    assert embedding_rows.named(observed) is None
    parts = observed.client.split(observed.client.update(observed.truth, observed.labels).materialise())
    silent = {n for n, g in parts.items() if not g.any()}
    assert silent == {n for n in kept if n.endswith(".a.weight")}  # as long as B is 0


def test_adapters_are_a_correction_of_the_layer_that_they_stand_beside(tmp_path: Path) -> None:
    file = texts.few(tmp_path / "few.txt")
    vocabulary, (x, y) = data.private(str(file)).vocabulary, data.private(str(file)).batch(0, 2)
    assert vocabulary is not None
    given: dict[str, Any] = {"vocabulary": len(vocabulary), "width": 8, "heads": 2}
    torch.manual_seed(0)
    network = networks.get("bert")((x.shape[1],), 2, **given, lora=3, lora_begun=True).double()
    plain = networks.get("bert")((x.shape[1],), 2, **given).double()
    state = network.state_dict()
    merged = {n.replace(".layer.weight", ".weight").replace(".layer.bias", ".bias"): t for n, t in state.items()
              if not n.endswith((".a.weight", ".b.weight"))}  # fmt: skip
    merged = {n.replace("encoder.weight", "encoder.layer.weight"): t for n, t in merged.items()}
    for name in [n.removesuffix(".a.weight") for n in state if n.endswith(".a.weight")]:
        merged[f"{name}.weight"] = state[f"{name}.layer.weight"] + state[f"{name}.b.weight"] @ state[f"{name}.a.weight"]
    plain.load_state_dict(merged)
    torch.testing.assert_close(network(x.double()), plain(x.double()))
    client = Client(network, (x.shape[1],), 2, vocabulary=vocabulary)
    whole = Client(plain, (x.shape[1],), 2, vocabulary=vocabulary)
    ours, full = (c.split(c.update(x.double(), y).materialise()) for c in (client, whole))
    name = "body.encoder.layer.0.attention.self.query"
    a, b = state[f"{name}.a.weight"], state[f"{name}.b.weight"]
    torch.testing.assert_close(ours[f"{name}.a.weight"], b.mT @ full[f"{name}.weight"])  # the chain rule
    torch.testing.assert_close(ours[f"{name}.b.weight"], full[f"{name}.weight"] @ a.mT)
    assert isinstance(network, nn.Module)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["bert", "gpt2"])
@pytest.mark.parametrize("begun", [True, False])
def test_dager_reads_a_sentence_off_adapters_of_a_rank_above_its_length(
    network: str, begun: bool, tmp_path: Path
) -> None:
    file = texts.written(tmp_path / "notes.txt")
    observed, _ = shared(file, network, 24, begun, sigma=1e-18)
    assert observed.truth is not None
    found = dager.run(lambda: None, observed, observed.client)
    assert (found.mode == observed.truth.numpy()).all()
    observed, _ = shared(file, network, 2, begun)
    with pytest.raises(BadInput, match="the inference isir"):
        dager.run(lambda: None, observed, observed.client)


@pytest.mark.slow
@pytest.mark.parametrize("begun", [True, False])
def test_a_sampler_needs_no_span(begun: bool, tmp_path: Path) -> None:
    observed, model = shared(texts.few(tmp_path / "few.txt"), "bert", 2, begun, sigma=1e-8)
    posterior = isir.run(model, observed, observed.client, draws=20, chains=8, islands=2)
    vocabulary = observed.client.vocabulary
    assert vocabulary is not None and observed.truth is not None
    found = tokens.tokens(posterior.with_(truth=observed.truth.numpy()), vocabulary)
    assert found.right is not None and found.right.all() and found.probability.min() > 0.9
