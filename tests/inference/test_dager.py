"""DAGER: sentences read off a clean gradient, and one line where that cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from texts import shared, written

from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import dager


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("text") / "notes.txt")


def right(observed: Observation) -> int:
    """How many sentences come out as they are, each beside its own label."""
    assert observed.truth is not None and observed.labels is not None
    found = dager.run(lambda: None, observed, observed.client)
    labels = observed.labels.tolist()
    true = {(label, *ids) for label, ids in zip(labels, observed.truth.long().tolist(), strict=True)}
    return len(true & {(label, *ids) for label, ids in zip(labels, found.mode.astype(int).tolist(), strict=True)})


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("network", "batch", "width"), [("bert", 1, 32), ("gpt2", 1, 32), ("gpt2", 4, 64), ("bert", 2, 128)]
)
def test_sentences_are_read_off_a_clean_gradient(
    network: str, batch: int, width: int, frozen: bool, file: Path
) -> None:
    observed, _ = shared(file, network, batch=batch, width=width, frozen=frozen)
    assert right(observed) == batch


def test_the_gradient_of_other_weights_gives_no_sentence(file: Path) -> None:
    observed, _ = shared(file, "gpt2")
    other, _ = shared(file, "gpt2", index=1)
    with torch.no_grad():
        for p in other.client.network.parameters():
            p.add_(0.3 * torch.randn_like(p))
    try:
        assert right(replace(observed, client=other.client)) == 0
    except BadInput as refused:
        assert "isir" in str(refused)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 12, "width": 8}, "full rank, 7"),
        ({"sigma": 10.0}, "nothing but noise"),
        ({"sigma": 0.02}, "isir"),
    ],
)  # fmt: skip
def test_where_the_span_tells_nothing_that_is_said(settings: dict[str, float], message: str, file: Path) -> None:
    observed, _ = shared(file, "gpt2", **settings)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=message):
        dager.run(lambda: None, observed, observed.client)


def test_it_asks_for_text_attention_and_numbers(file: Path, tmp_path: Path) -> None:
    observed, _ = shared(file, "gpt2")
    with pytest.raises(BadInput, match="NaN"):
        dager.run(lambda: None, replace(observed, g=observed.g * torch.nan), observed.client)
    (tmp_path / "bag.py").write_text(
        "from torch import nn\n"
        "class Bag(nn.Module):\n"
        "    def __init__(self, vocabulary, classes):\n"
        "        super().__init__()\n"
        "        self.table, self.last = nn.Embedding(vocabulary, 8), nn.Linear(8, classes)\n"
        "    def forward(self, x):\n"
        "        return self.last(self.table(x.long()).mean(1))\n"
        "def bag(input_shape, num_classes, *, vocabulary: int = 0):\n"
        "    return Bag(vocabulary, num_classes)\n"
    )
    from pplleak.federation.scenario import Scenario, observe

    bag = observe(Scenario(str(file), network=f"{tmp_path / 'bag.py'}:bag"))
    with pytest.raises(BadInput, match="no attention layer"):
        dager.run(lambda: None, bag, bag.client)
    digits = observe(Scenario("digits"))
    with pytest.raises(BadInput, match="attack text"):
        dager.run(lambda: None, digits, digits.client)
