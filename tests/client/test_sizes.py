"""What a network takes is known before it is built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pplleak import memory
from pplleak.client import sizes
from pplleak.errors import BadInput
from pplleak.federation.scenario import build_client


def test_layers_of_any_size_are_refused_before_the_first_one_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2**30)
    built: list[torch.device] = []

    def build() -> nn.Module:
        built.append(torch.empty(0).device)
        return nn.Sequential(nn.Linear(64, 10**6), nn.Linear(10**6, 10**6))

    with pytest.raises(BadInput, match=r"the network of a test .* GiB are free: take a smaller one"):
        sizes.sketch(build, "the network of a test", {}, "", whole=True)
    assert built == [torch.device("meta")]
    with pytest.raises(BadInput, match="take a smaller one"):
        build_client("mlp:widths=(1000000,1000000)", (1, 8, 8), 10)


def test_a_network_is_the_same_whether_it_was_sketched_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sketched = build_client("mlp", (1, 4, 4), 3, seed=1).network.state_dict()
    monkeypatch.setattr(sizes, "sketch", lambda *_, **__: None)
    plain = build_client("mlp", (1, 4, 4), 3, seed=1).network.state_dict()
    other = build_client("mlp", (1, 4, 4), 3, seed=2).network.state_dict()
    assert all(torch.equal(sketched[n], plain[n]) for n in plain)
    assert not all(torch.equal(sketched[n], other[n]) for n in plain)


def test_a_constructor_that_computes_with_its_weights_is_left_to_be_counted_as_it_runs() -> None:
    def build() -> nn.Module:
        layer = nn.Linear(3, 3)
        layer.weight.data *= 1 / float(layer.weight.abs().max())
        return layer

    sizes.sketch(build, "it", {}, "", whole=True)
    assert float(build().weight.abs().max()) == pytest.approx(1.0)
