"""The two promises of every file in models/: it is ordinary Pyro, and it is vectorised over chains.

Nothing here knows the models by name: a new file is tested because it lies in the folder.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pytest
import torch
from conftest import batch_of, own, quick_fits, tiny
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal, init_to_median
from scenes import known
from torch import Tensor, nn

from pplleak import channels, priors, programs
from pplleak.client import Client
from pplleak.federation.observation import Observation
from pplleak.studies.attack.attack import believe

SIGMA = 0.3
# the Bayes-optimal adversary is a model for every prior and every channel that there is
IMAGES = [p for p in priors.names() if p != "sentences"]  # that of text: tests/inference/test_isir.py
BELIEFS = [*(f"prior={p}" for p in IMAGES), *(f"channel={c}" for c in channels.names())]
NAMES = [*programs.names("models"), *(f"optimal:{b}" for b in BELIEFS)]
each_model = pytest.mark.parametrize("name", NAMES)
labels = pytest.mark.parametrize("known", [True, False], ids=["known labels", "unknown labels"])


def with_labels_of_every_second(first: bool) -> pytest.MarkDecorator:
    """Every model, its labels known for every second one, in turn: `first` is whether those of the first are.

    NUTS begins with known labels and SVI with unknown ones. So every model meets a stock inference with known labels
    and one with unknown labels, and every inference meets both, at half the price of all pairs.
    """
    known = itertools.cycle([first, not first])
    cases = [pytest.param(n, k, id=f"{n}-{'' if k else 'un'}known labels") for n, k in zip(NAMES, known, strict=False)]
    return pytest.mark.parametrize(("name", "known"), cases)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """No promise here is of how well a prior fits."""
    with quick_fits():
        yield


def twice() -> nn.Module:
    """A layer that is used twice, which has no closed form."""
    shared = nn.Linear(4, 4)
    return nn.Sequential(nn.Flatten(), shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3))


CLIENTS: dict[str, Callable[[], Client]] = {
    "lazy": tiny,
    "materialised": lambda: own(twice, (1, 2, 2)),
}


def bound(name: str, client: Client) -> Callable[..., Any]:
    """The model as `attack` would bind it: noise and public images are the target's, the rest stays at its defaults."""
    public = torch.rand(30, *client.input_shape, generator=torch.Generator().manual_seed(3))
    labelled = Observation(torch.zeros(client.update_size), public_labels=torch.arange(30) % client.num_classes)
    target = known(client, labelled, public=public, sigma=SIGMA)
    return believe(programs.load("models", name), target)


def data_for(name: str, client: Client, size: int, known: bool) -> dict[str, Tensor]:
    """What a client with random data shares through the channel that the model believes in."""
    x, y = batch_of(client, (), size)
    believed = poutine.trace(bound(name, client)).get_trace(client, size).nodes["g"]["fn"]
    g = type(believed)(client.update(x, y), **believed.settings).sample()
    return {"g": g} | ({"y": y} if known else {})


@pytest.mark.slow
@each_model
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_samples_x_y_and_g_in_their_shapes_and_the_clients_precision(name: str, dtype: str) -> None:
    client = tiny(dtype=dtype)
    model = bound(name, client)
    for size in (1, 3):
        nodes = poutine.trace(model).get_trace(client, size).nodes
        assert nodes["x"]["value"].shape == (size, *client.input_shape)
        assert nodes["y"]["value"].shape == (size,)
        assert nodes["g"]["value"].shape == (client.update_size,)
        assert nodes["g"]["value"].dtype == client.dtype
        assert not nodes["y"]["value"].is_floating_point()


@each_model
def test_its_beliefs_are_keyword_arguments_with_defaults_and_a_line_of_help(name: str) -> None:
    model = programs.load("models", name)
    first, second, *beliefs = inspect.signature(model).parameters.values()
    assert (first.name, second.name, second.default) == ("client", "batch_size", 1)
    assert all(b.kind is b.KEYWORD_ONLY and b.default is not b.empty for b in beliefs)
    assert all(s.help for s in programs.settings(model))


@pytest.mark.slow
@with_labels_of_every_second(True)
def test_stock_nuts_runs_on_it(name: str, known: bool) -> None:
    client = tiny()
    model = pyro.condition(bound(name, client), data=data_for(name, client, 1, known))
    kernel = NUTS(model, max_tree_depth=2)
    mcmc = MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(client)
    samples = mcmc.get_samples()
    assert samples
    assert "y" not in samples
    assert all(v.isfinite().all() for v in samples.values())
    assert all(len(torch.unique(v.reshape(len(v), -1), dim=0)) > 1 for v in samples.values()), "the chain never moved"


@pytest.mark.slow
@with_labels_of_every_second(False)
def test_stock_svi_with_an_autoguide_runs_on_it_and_gains(name: str, known: bool) -> None:
    client = tiny()
    model = config_enumerate(pyro.condition(bound(name, client), data=data_for(name, client, 1, known)))
    discrete: set[str] = set()

    def hidden(site: dict[str, Any]) -> bool:
        if site["type"] == "sample" and not site["is_observed"] and site["fn"].has_enumerate_support:
            discrete.add(site["name"])
        return site["name"] in discrete

    guide = AutoNormal(poutine.block(model, hide_fn=hidden), init_loc_fn=init_to_median, init_scale=0.1)
    guide(client)
    loss = TraceEnum_ELBO(max_plate_nesting=0) if discrete else Trace_ELBO()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss)
    losses = [svi.step(client) for _ in range(24)]
    assert all(map(torch.isfinite, torch.tensor(losses)))
    assert sum(losses[-8:]) < sum(losses[:8])


@each_model
@pytest.mark.parametrize("parallel", [False, True])
def test_stock_predictive_draws_from_it_one_by_one_and_vectorised(name: str, parallel: bool) -> None:
    client = tiny()
    drawn = Predictive(bound(name, client), num_samples=4, parallel=parallel, return_sites=("x", "y", "g"))(client, 2)
    assert drawn["x"].shape[-4:] == (2, *client.input_shape)
    assert {n: v.numel() // 4 for n, v in drawn.items()} == {
        "x": 2 * 4, "y": 2, "g": client.update_size,
    }  # fmt: skip
    assert len(torch.unique(drawn["x"].reshape(4, -1), dim=0)) == 4
    assert len(torch.unique(drawn["g"].reshape(4, -1), dim=0)) == 4


@each_model
@labels
def test_conditioned_on_data_its_density_is_finite_and_is_the_channels(name: str, known: bool) -> None:
    client = tiny()
    data = data_for(name, client, 2, known)
    trace = poutine.trace(pyro.condition(bound(name, client), data=data)).get_trace(client, 2)
    assert trace.log_prob_sum().isfinite()
    assert trace.nodes["g"]["is_observed"]
    assert trace.nodes["y"]["is_observed"] is known
    x, y = (trace.nodes.get(n, trace.nodes[m])["value"] for n, m in (("transformed", "x"), ("target", "y")))
    channel, update = trace.nodes["g"]["fn"], client.materialised(x.to(client.dtype), y)
    expected = type(channel)(update, **channel.settings).log_prob(data["g"])
    if isinstance(channel, channels.Gaussian):
        expected = torch.distributions.Normal(update.materialise(), SIGMA).log_prob(data["g"]).sum()
    torch.testing.assert_close(channel.log_prob(data["g"]), expected, rtol=1e-9, atol=0)


def log_densities(
    model: Callable[..., Any], client: Client, size: int, data: dict[str, Tensor], chains: int | None
) -> dict[str, Tensor]:
    """Every sample site's log-density, under a plate of chains or without one."""

    def program() -> None:
        if chains is None:
            model(client, size)
        else:
            with pyro.plate("chains", chains, dim=-1):
                model(client, size)

    nodes = poutine.trace(pyro.condition(program, data=data)).get_trace().nodes
    return {
        n: node["fn"].log_prob(node["value"]) for n, node in nodes.items() if node["type"] == "sample" and n != "chains"
    }


@each_model
@pytest.mark.parametrize(("kind", "size", "known"), [("lazy", 1, True), ("lazy", 2, False), ("materialised", 2, True)])
def test_under_a_plate_of_chains_every_density_equals_that_of_separate_runs(
    name: str, known: bool, kind: str, size: int
) -> None:
    """Every kind of update, size of batch and state of the labels, for every model; not all of their products."""
    client, chains = CLIENTS[kind](), 2
    model, data = bound(name, client), data_for(name, client, size, known)

    def plated() -> None:
        with pyro.plate("chains", chains, dim=-1):
            model(client, size)

    nodes = poutine.trace(pyro.condition(plated, data=data)).get_trace().nodes
    latent = {
        n: node["value"]
        for n, node in nodes.items()
        if node["type"] == "sample" and n not in data and n != "chains" and not node["infer"].get("_deterministic")
    }
    assert all(v.shape[0] == chains for v in latent.values())
    together = log_densities(model, client, size, data | latent, chains)
    assert {"y", "g"} <= set(together)
    for n, found in together.items():
        assert found.shape == (chains,), n
    for k in range(chains):
        alone = log_densities(model, client, size, data | {n: v[k] for n, v in latent.items()}, None)
        assert set(alone) == set(together)
        for n, expected in alone.items():
            assert expected.shape == ()
            torch.testing.assert_close(together[n][k], expected, rtol=1e-10, atol=1e-12)
    if name != "optimal:channel=svt":  # whose bound is so small at its default that every entry lies beyond it
        assert len(torch.unique(together["g"])) == chains  # the chains really differ


def test_a_model_that_mixes_its_chains_would_be_caught() -> None:
    """The wrong twin of the check above: a prior that sees the mean over all chains."""
    client = tiny()
    real = bound("optimal", client)

    def mixing(client: Client, size: int = 1) -> None:
        shift = pyro.sample("shift", pyro.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("late", pyro.distributions.Normal(shift.mean(), 1.0))
        real(client, size)

    data = data_for("optimal", client, 1, True) | {"late": torch.zeros((), dtype=torch.float64)}
    shifts = torch.randn(3, dtype=torch.float64)
    together = log_densities(mixing, client, 1, data | {"shift": shifts}, 3)["late"]
    alone = [log_densities(mixing, client, 1, data | {"shift": s}, None)["late"] for s in shifts]
    assert not torch.allclose(together, torch.stack(alone), rtol=1e-10)


def test_the_clients_are_what_they_are_called() -> None:
    assert CLIENTS["lazy"]().path == "lazy" != CLIENTS["materialised"]().path
