"""LAMP and TAG on a small client: what they find of a clean gradient, and of one that says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from texts import shared, written

from pplleak.data.vocabulary import lengths
from pplleak.errors import BadInput
from pplleak.inference import lamp


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("text") / "notes.txt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "settings"),
    [("bert", {"moves": 5, "steps": 120}), ("gpt2", {"matching": "tag", "moves": 0, "norm": 0.0, "steps": 200})],
    ids=["lamp", "tag"],
)
def test_most_tokens_of_a_clean_gradient_are_found_and_none_of_noise(
    network: str, settings: dict[str, float], file: Path
) -> None:
    observed, _ = shared(file, network, width=32 if network == "bert" else 64)
    assert observed.truth is not None
    truth, n = observed.truth.long().numpy(), int(lengths(observed.truth.long()))

    def right(g: torch.Tensor, **more: float) -> float:
        """The share of tokens that are right at their places, of what is made of a gradient."""
        seen = replace(observed, g=g)
        found = lamp.run(lambda: None, seen, observed.client, **settings | more)  # type: ignore[arg-type]
        return float((found.mode.astype(int) == truth)[0, 1 : n + 1].mean())

    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(len(observed.g), generator=draw).double()
    assert right(observed.g) >= 0.7 > 0.5 >= right(noise, steps=settings["steps"] // 4)


def test_without_a_truth_the_positions_name_the_length(file: Path) -> None:
    observed, _ = shared(file, "bert", depth=1)
    assert observed.truth is not None
    blind = replace(observed, truth=None)
    assert torch.equal(lengths(lamp._frames(blind)), lengths(observed.truth.long()))
    found = lamp.run(lambda: None, blind, observed.client, steps=2)
    assert not found.attrs["lengths_told"]


def test_it_takes_text_with_known_labels(file: Path) -> None:
    observed, _ = shared(file, "bert", depth=1)
    with pytest.raises(BadInput, match="known labels"):
        lamp.run(lambda: None, replace(observed, labels=None), observed.client)


def test_what_was_interrupted_is_kept_from_its_first_step_on(file: Path) -> None:
    observed, _ = shared(file, "bert", depth=1)

    def stopped(after: int) -> Callable[[str, int], Iterator[int]]:
        def ticks(_: str, total: int) -> Iterator[int]:
            yield from range(min(after, total))
            raise KeyboardInterrupt

        return ticks

    cut = lamp.run(lambda: None, observed, observed.client, steps=9, moves=0, progress=stopped(2))
    assert cut.interrupted and cut.reasons == ("interrupted after 2 of 9 steps",)
    whole = lamp.run(lambda: None, observed, observed.client, steps=2, moves=0)
    assert not whole.interrupted and (cut.mode == whole.mode).all()
    with pytest.raises(KeyboardInterrupt):
        lamp.run(lambda: None, observed, observed.client, steps=9, progress=stopped(0))
