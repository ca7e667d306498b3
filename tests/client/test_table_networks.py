"""Networks of tables: the columns that a transformer's tokens stand for, and their closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tables
import torch

from pplleak.client import networks
from pplleak.errors import BadInput
from pplleak.federation.scenario import Scenario, observe
from pplleak.settings import Named

SMALL = {"ft_transformer": {"width": 8, "heads": 2}, "tabular_resnet": {"width": 6, "hidden": 5}}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tables.written(tmp_path_factory.mktemp("table") / "houses.csv")


@pytest.mark.parametrize("name", SMALL)
def test_a_table_is_taken_as_it_is_encoded_and_the_closed_form_is_the_gradient(name: str, file: Path) -> None:
    observed = observe(Scenario(str(file), batch_size=3, dtype="float64", network=Named(name, SMALL[name])))
    client, y = observed.client, observed.labels
    assert client.path == "lazy" and observed.truth is not None and y is not None
    x = torch.stack([observed.truth, observed.truth.flip(0)])
    lazy, slow = client.update(x, y), replace(client, path="loop").materialised(x, y.expand(2, -1))
    assert torch.allclose(lazy.materialise(), slow.materialise(), rtol=1e-9, atol=1e-12)
    assert torch.allclose(lazy.sqdist(observed.g), slow.sqdist(observed.g), rtol=1e-9, atol=1e-12)
    assert torch.allclose(lazy.per_example_sqnorm(), slow.per_example_sqnorm(), rtol=1e-9)


def test_every_column_is_a_token_and_a_cell_changes_its_own(file: Path) -> None:
    observed = observe(Scenario(str(file), dtype="float64", network=Named("ft_transformer", SMALL["ft_transformer"])))
    columns = tables.columns_of(observed)
    tokens = observed.client.network[1]
    assert tokens.sizes == [c.width for c in columns.varying] == [3, 1, 2]
    x = observed.client.network[0](observed.truth)
    for k, column in enumerate(columns.varying):
        changed = x.clone()
        changed[:, columns.starts[column.name]] += 1
        moved = (tokens(changed) - tokens(x)).abs().sum((0, 2)).nonzero().flatten().tolist()
        assert moved == [k + 1]  # the class token stands before them


def test_a_transformer_weighs_all_columns_for_its_class_token() -> None:
    """The order of numbers is told by their tokens alone: exchanged together with their layers, they say the same."""
    torch.manual_seed(0)
    network = networks.load("ft_transformer")((3,), 2, **SMALL["ft_transformer"]).double()
    x = torch.rand(4, 3, dtype=torch.float64)
    before = network(x)
    network[1].columns = torch.nn.ModuleList([network[1].columns[k] for k in (2, 0, 1)])
    torch.testing.assert_close(network(x[:, [2, 0, 1]]), before)
    assert not torch.allclose(network(x), before)


@pytest.mark.parametrize(
    ("settings", "said"), [({"blocks": (2, 2)}, "a record has 3"), ({"blocks": (3, 0)}, "a record has 3"),
                           ({"width": 6, "heads": 4}, "multiple of 4")]
)  # fmt: skip
def test_a_transformer_that_cannot_be_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        networks.load("ft_transformer")((3,), 2, **settings)


def test_the_residual_network_is_the_papers() -> None:
    """(N, 4) -> 6 features, two blocks 6 -> 5 -> 6, normalised before each and before the head."""
    network = networks.load("tabular_resnet")((4,), 2, **SMALL["tabular_resnet"])
    assert sum(p.numel() for p in network.parameters()) == (4 + 1) * 6 + 2 * (12 + 7 * 5 + 6 * 6) + 12 + 7 * 2
    assert not network.training and networks.load("tabular_resnet")((4,), 2, batch_norm="train").training
