"""Every channel p(g | u): its density is the textbook formula on the materialised update, lazy or not, one chain or
many."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pytest
import torch
from channel_cases import CASES, Case, each_channel
from conftest import batch_of, own, tiny
from pyro.infer import Predictive
from torch import Tensor, nn

from pplleak import channels
from pplleak.client import Client
from pplleak.client.update import DenseUpdate, LazyUpdate


def convolutional() -> Client:
    """A layer with more rows than its weight has entries: its share is dense, whatever the batch."""
    return own(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)), (1, 4, 4))


NETWORKS: dict[str, Callable[[], Client]] = {"perceptron": tiny, "convolutional": convolutional}


def test_every_channel_is_tested_here() -> None:
    update = DenseUpdate(torch.ones(1, 3, dtype=torch.float64))
    tested = {type(case.make(update)) for case in CASES.values()}
    named = {c for c in vars(channels).values() if isinstance(c, type) and issubclass(c, channels.Channel)}
    assert tested == named - {channels.Channel}


@each_channel
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [1, 3])
def test_density_is_the_textbook_formula_on_the_materialised_update(case: Case, network: str, size: int) -> None:
    client = NETWORKS[network]()
    x, y = batch_of(client, (2, 3), size)
    g = case.make(client.update(*batch_of(client, (), size, seed=1))).sample()
    found = case.make(client.update(x, y)).log_prob(g)
    assert found.dtype == torch.float64 and found.shape == (2, 3)
    examples = client.materialised(x, y).examples.numpy()
    for at in np.ndindex(2, 3):
        assert found[at].item() == pytest.approx(case.textbook(g.numpy(), examples[at]), rel=case.rel)


@each_channel
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [1, 3])
def test_lazy_and_materialised_updates_have_the_same_density_and_slope(case: Case, network: str, size: int) -> None:
    client = NETWORKS[network]()
    x, y = batch_of(client, (2,), size)
    g = case.make(client.update(*batch_of(client, (), size, seed=1))).sample()
    x.requires_grad_()
    values, slopes = [], []
    for update in (client.update(x, y), client.materialised(x, y)):
        values.append(case.make(update).log_prob(g))
        slopes.append(torch.autograd.grad(values[-1].sum(), x)[0])
    assert isinstance(client.update(x, y), LazyUpdate)
    assert slopes[0].abs().max() > 0
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=0)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-8, atol=1e-10)


@each_channel
def test_lazy_densities_never_materialise_the_update(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tiny()
    channel = case.make(client.update(*batch_of(client, (3,))))
    g = channel.sample()[0]

    def refuse(self: object) -> Tensor:
        raise AssertionError("materialised")

    monkeypatch.setattr(LazyUpdate, "materialise", refuse)
    if case.lazy:
        assert channel.log_prob(g).isfinite().all()
    else:
        with pytest.raises(AssertionError, match="materialised"):
            channel.log_prob(g)


@each_channel
def test_many_chains_have_the_densities_of_separate_runs(case: Case) -> None:
    client = tiny()
    x, y = batch_of(client, (3,), 2)
    gs = case.make(client.update(x, y)).sample()
    assert gs.shape == (3, client.update_size) and gs.dtype == client.dtype
    one, own_each = case.make(client.update(x, y)).log_prob(gs[0]), case.make(client.update(x, y)).log_prob(gs)
    for k in range(3):
        alone = case.make(client.update(x[k], y[k]))
        assert alone.batch_shape == () and alone.log_prob(gs[0]).shape == ()
        torch.testing.assert_close(one[k], alone.log_prob(gs[0]), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(own_each[k], alone.log_prob(gs[k]), rtol=1e-10, atol=1e-12)
    assert len(torch.unique(one)) == 3


@each_channel
def test_expanding_repeats_the_density(case: Case) -> None:
    client = tiny()
    channel = case.make(client.update(*batch_of(client, (3,))))
    grown, g = channel.expand(torch.Size((2, 3))), channel.sample()[0]
    assert grown.batch_shape == (2, 3) and grown.event_shape == (client.update_size,)
    torch.testing.assert_close(grown.log_prob(g), channel.log_prob(g).expand(2, 3), rtol=1e-12, atol=0)


@each_channel
def test_a_client_in_single_precision_has_the_density_of_one_in_double(case: Case) -> None:
    single, double = tiny(dtype="float32"), tiny()
    x, y = batch_of(single, (3,))
    g = case.make(single.update(*batch_of(single, (), seed=1))).sample()
    assert g.dtype == torch.float32
    found = case.make(single.update(x, y)).log_prob(g)
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, case.make(double.update(x.double(), y)).log_prob(g.double()), rtol=1e-5, atol=1e-4
    )


@each_channel
def test_it_has_a_curvature(case: Case) -> None:
    """Second derivatives in x are finite: the Laplace approximation and the samplers' metric need them."""
    client = tiny()
    x, y = batch_of(client)
    g = case.make(client.update(x, y)).sample()
    curvature = torch.autograd.functional.hessian(lambda x: case.make(client.update(x, y)).log_prob(g), x)
    assert curvature.isfinite().all() and curvature.abs().max() > 0


@each_channel
@pytest.mark.parametrize("parallel", [False, True])
def test_it_is_a_pyro_site_that_predictive_vectorises(case: Case, parallel: bool) -> None:
    client = tiny()

    def model() -> None:
        x = pyro.sample("x", pyro.distributions.Uniform(0.0, 1.0).expand([1, 1, 2, 2]).to_event(4))
        pyro.sample("g", case.make(client.update(x, torch.zeros(1, dtype=torch.long))))

    drawn = Predictive(model, num_samples=5, parallel=parallel)()
    assert drawn["g"].shape == (5, client.update_size)
    assert len(torch.unique(drawn["g"], dim=0)) == 5
