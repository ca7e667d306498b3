"""Everything is made where the client is. No accelerator is needed to see it: on torch's meta device tensors have
shapes and no values, and an operation of one with a tensor on the cpu raises."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pytest
import torch
from conftest import tiny
from scenes import from_data
from torch import Tensor

from pplleak import channels, density, priors, programs
from pplleak.client import Client
from pplleak.density import hamiltonian
from pplleak.errors import BadInput
from pplleak.federation.scenario import torch_device
from pplleak.priors import _store as store
from pplleak.settings import Named
from pplleak.studies.attack.attack import believe

META = torch.device("meta")
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"widths": (5,)}, "lenet": {"channels": 3}, "convnet": {"channels": (3, 4), "width": 5},
    "resnet20": {"width": 2}, "vit": {"width": 8, "heads": 2},
}  # fmt: skip
SHAPE = (1, 8, 8)


def moved(client: Client) -> Client:
    return replace(client, network=copy.deepcopy(client.network).to(META))


def batch(lead: tuple[int, ...] = (2,), size: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.rand(*lead, size, *SHAPE, dtype=torch.float64, device=META, requires_grad=True)
    return x, torch.zeros(*lead, size, dtype=torch.long, device=META)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("lazy", [True, False])
def test_an_update_lies_where_its_client_is(name: str, lazy: bool) -> None:
    client = moved(tiny(name, SHAPE, **NETWORKS[name]))
    x, y = batch()
    u = client.update(x, y) if lazy else client.materialised(x, y)
    g = torch.empty(client.update_size, device=META)
    parts = u.sqdist(g).sum() + u.inner(g).sum() + u.sqnorm().sum() + u.per_example_sqnorm().sum()
    assert parts.device == u.materialise().device == META
    (slope,) = torch.autograd.grad(parts, x)
    assert slope.device == META and slope.shape == x.shape
    with pytest.raises(RuntimeError):  # a tensor that was left behind is seen
        u.sqdist(torch.zeros(client.update_size)).sum()


def named(name: str) -> Named:
    given: dict[str, Any] = {"sigma": 0.1} if "sigma" in {s.name for s in channels.settings(name)} else {}
    return channels.check(Named(name, given))


@pytest.fixture()
def valueless(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Who asks a tensor without values for one (is g sparse? does it lie on the grid?) gets the sound answer."""
    sound = {"item": 1.0, "__bool__": name != "quantised", "__float__": 1.0}
    for asked, answer in sound.items():
        own = getattr(Tensor, asked)
        monkeypatch.setattr(Tensor, asked, lambda t, own=own, answer=answer: answer if t.is_meta else own(t))


@pytest.mark.slow
@pytest.mark.usefixtures("valueless")
@pytest.mark.parametrize("name", channels.names())
def test_a_channel_weighs_and_draws_where_its_update_is(name: str) -> None:
    client = moved(tiny(shape=SHAPE))
    x, y = batch()
    with pyro.validation_enabled(False):
        law = channels.make(named(name), client.update(x, y), client, 3, torch.rand(40, *SHAPE))
        value = law.log_prob(torch.empty(client.update_size, device=META))
        assert value.device == META
        assert name == "elastic" or law.sample().device == META  # which draws by scipy, on the cpu
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert slope.device == META


@pytest.mark.parametrize(
    "name", sorted(set(priors.names()) - {"sentences", "anomaly", *store.kinds()})
)  # a file's values are checked
def test_a_prior_draws_where_the_client_is(name: str) -> None:
    images = torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(0))

    @dataclass(frozen=True)
    class Like:
        input_shape: tuple[int, ...] = SHAPE
        dtype: torch.dtype = torch.float32
        device: torch.device = META

    with pyro.validation_enabled(False):
        made = priors.make(Named(name), Like(), images, torch.arange(30) % 3)
        x = (made.of_class(torch.tensor([2, 0])) if isinstance(made, priors.Conditional) else made).sample(2)
    assert x.device == META and x.shape[-3:] == SHAPE


@functools.cache
def on_meta(unknown: bool) -> density.Density:
    """A density that was built on the cpu, with its client and observation elsewhere."""
    target = from_data(settings={"widths": (5,)}, labels_shared=not unknown)
    built = density.build(believe(programs.load("models", "optimal"), target), target.client, target)
    labels = None if target.labels is None else target.labels.to(META)
    client = moved(target.client)
    observed = replace(target, client=client, g=target.g.to(META), labels=labels, truth=None)
    discrete = {n: v.to(META) for n, v in built.discrete.items()}
    return replace(built, client=client, observed=observed, discrete=discrete)


@pytest.mark.parametrize("unknown", [False, True])
def test_a_step_of_a_map_and_of_hmc_stays_where_the_density_is(unknown: bool) -> None:
    built = on_meta(unknown)
    z = torch.empty(4, built.dim, device=META, requires_grad=True)
    value, gradient = built.value_and_grad(z)
    assert value.device == gradient.device == META
    z.grad = -gradient
    torch.optim.Adam([z]).step()

    def potential(w: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = built.value_and_grad(w)
        return -value, -gradient

    state, info = hamiltonian.step(potential, hamiltonian.init(potential, z.detach()), 0.1, 2)
    assert state.w.device == state.energy.device == info.acceptance.device == META
    assert built.sample_prior(3).device == META


def test_devices_are_named_and_auto_takes_what_there_is() -> None:
    assert torch_device("auto").type in ("cuda", "mps", "cpu")
    assert torch_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99", ""):
        with pytest.raises(BadInput, match=f"no device '{name}' on this machine"):
            torch_device(name)
