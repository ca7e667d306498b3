"""Networks of text: their closed form is the gradient of autograd, and the table's rows name the tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from texts import shared, written

from pplleak.data.vocabulary import SPECIAL
from pplleak.density import embedding_rows
from pplleak.errors import BadInput
from pplleak.federation.scenario import Scenario, observe


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("text") / "notes.txt")


@pytest.mark.parametrize("network", ["bert", "gpt2"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_closed_form_is_the_gradient_of_autograd(network: str, frozen: bool, file: Path) -> None:
    observed, _ = shared(file, network, batch=3, frozen=frozen)
    client, y = observed.client, observed.labels
    assert client.path == "lazy" and observed.truth is not None and y is not None
    x = torch.stack([observed.truth, observed.truth.flip(0)])  # two chains
    lazy = client.update(x, y)
    slow = replace(client, path="loop").materialised(x, y.expand(2, -1))
    assert torch.allclose(lazy.materialise(), slow.materialise(), rtol=1e-9, atol=1e-12)
    precision = torch.rand(client.update_size, dtype=torch.float64)
    for weights in (None, precision):
        assert torch.allclose(lazy.sqdist(observed.g, weights), slow.sqdist(observed.g, weights), rtol=1e-9, atol=1e-12)
    assert torch.allclose(lazy.inner(observed.g), slow.inner(observed.g), rtol=1e-9)
    assert torch.allclose(lazy.per_example_sqnorm(), slow.per_example_sqnorm(), rtol=1e-9)
    shares = torch.rand(2, 3, dtype=torch.float64)
    assert torch.allclose(lazy.scaled(shares).materialise(), slow.scaled(shares).materialise(), rtol=1e-9, atol=1e-12)
    assert torch.allclose(lazy.expand(torch.Size([4, 2])).sqnorm(), slow.sqnorm().expand(4, 2), rtol=1e-9)


@pytest.mark.parametrize("network", ["bert", "gpt2"])
def test_the_rows_of_the_table_name_the_tokens_of_a_batch(network: str, file: Path) -> None:
    observed, _ = shared(file, network, batch=4, sigma=1e-12)
    found = embedding_rows.named(observed)
    assert found is not None and found.exact and observed.truth is not None
    assert set(found.tokens) == {int(i) for i in observed.truth.flatten() if i >= len(SPECIAL)}
    frozen, _ = shared(file, network, batch=4, frozen=True)
    assert embedding_rows.named(frozen) is None


@pytest.mark.slow
def test_behind_noise_a_row_is_named_as_often_as_its_odds_say(file: Path) -> None:
    """σ as large as an entry of a row: claims of all sizes. The twin believes in half of the noise."""
    claims, told, wrong = [], [], []
    for index in range(10):
        observed, _ = shared(file, "gpt2", sigma=0.12, index=index)
        found = embedding_rows.named(observed)
        twin = embedding_rows.named(replace(observed, protection=observed.protection.with_sigma(0.06)))
        assert found is not None and twin is not None and observed.truth is not None and not found.exact
        there = torch.zeros(len(found.log_odds)).scatter(0, observed.truth.long()[0], 1.0)
        told.append(there[len(SPECIAL) :])
        claims.append(found.log_odds[len(SPECIAL) :].sigmoid())
        wrong.append(twin.log_odds[len(SPECIAL) :].sigmoid())
    truth = torch.cat(told).double()

    def off(p: torch.Tensor) -> float:
        """Standard errors by which the number of tokens that occur is off what was claimed."""
        return abs(float((truth - p).sum())) / max(1.0, float((p * (1 - p)).sum())) ** 0.5

    assert off(torch.cat(claims)) < 5
    assert off(torch.cat(wrong)) > 5


def test_networks_of_images_and_of_text_say_what_they_take(file: Path) -> None:
    with pytest.raises(BadInput, match="takes images, and the data are text"):
        observe(Scenario(str(file), network="mlp"))
    with pytest.raises(BadInput, match="attack text"):
        observe(Scenario("digits", network="bert"))
    with pytest.raises(BadInput, match="no multiple of 3"):
        shared(file, "gpt2", heads=3)
