"""Programs and observations that have no posterior are refused, in one line that says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import observe, tiny
from torch import Tensor

from pplleak import channels, density, programs
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.models import dlg

SIGMA = 0.3


def without(site: str) -> Callable[..., None]:
    def model(client: Client, size: int = 1) -> None:
        x = (
            torch.zeros(size, 1, 2, 2)
            if site == "x"
            else pyro.sample("x", dist.Normal(0.0, 1.0).expand([size, 1, 2, 2]).to_event(4))
        )
        y = torch.zeros(size, dtype=torch.long) if site == "y" else pyro.sample("y", client.label_prior(size))
        if site != "g":
            pyro.sample("g", channels.Gaussian(client.update(x, y), SIGMA))

    return model


@pytest.mark.parametrize("site", ["x", "y", "g"])
def test_a_model_without_one_of_its_sites_is_refused_by_name(site: str) -> None:
    client = tiny(dtype="float32")
    with pytest.raises(BadInput, match=f"no site '{site}'"):
        density.build(without(site), client, observe(client, SIGMA))
    assert density.build(without(""), client, observe(client, SIGMA)).dim == 4


def test_a_model_with_nothing_to_infer_is_refused() -> None:
    client = tiny()

    def model(client: Client, size: int = 1) -> None:
        x = pyro.deterministic("x", torch.zeros(size, 1, 2, 2))
        y = pyro.sample("y", client.label_prior(size))
        pyro.sample("g", channels.Gaussian(client.update(x, y), SIGMA))

    with pytest.raises(BadInput, match="nothing to infer"):
        density.build(model, client, observe(client, SIGMA))


def test_undeclared_event_dimensions_are_refused_by_the_sites_name() -> None:
    client = tiny()

    def model(client: Client, size: int = 1) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).expand([4, 1]))
        x = pyro.deterministic("x", w.reshape(-1, size, *client.input_shape))
        y = pyro.sample("y", client.label_prior(size))
        pyro.sample("g", channels.Gaussian(client.update(x, y), SIGMA))

    with pytest.raises(BadInput, match=r"'w' .*\.to_event\(\)"):
        density.build(model, client, observe(client, SIGMA))(torch.zeros(3, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda g: g[:-1], "shape"),
        (lambda g: g[None], "shape"),
        (lambda g: g.index_fill(0, torch.tensor([1]), torch.nan), "NaN"),
    ],
    ids=["too short", "two-dimensional", "NaN"],
)
def test_an_observation_that_does_not_fit_is_refused(spoil: Callable[[Tensor], Tensor], said: str) -> None:
    client = tiny()
    observed = observe(client, SIGMA)
    with pytest.raises(BadInput, match=said):
        density.build(dlg.model, client, replace(observed, g=spoil(observed.g)))


@pytest.mark.parametrize("inference", ["map", "hmc", "langevin", "laplace", "nuts", "smc", "svi"])
def test_a_model_without_any_probability_is_refused_by_every_inference(inference: str) -> None:
    client = tiny()

    def model(client: Client, size: int = 1) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).expand([size, 1, 2, 2]).to_event(4))
        pyro.factor("never", torch.full(x.shape[:-4], -torch.inf, dtype=torch.float64))
        y = pyro.sample("y", client.label_prior(size))
        pyro.sample("g", channels.Gaussian(client.update(x, y), SIGMA))

    run = programs.load("inference", inference)
    with pytest.raises(BadInput, match="no probability"):
        run(model, observe(client, SIGMA), client)
