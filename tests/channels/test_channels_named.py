"""A channel by its name: it makes what is shared, the observation file carries it, the model falls to its settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny
from pyro import poutine
from safetensors import safe_open
from safetensors.torch import save_file
from scenes import from_data, known

from pplleak import channels, programs
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.stored import load, save
from pplleak.settings import Named
from pplleak.studies.attack.attack import believe

each_name = pytest.mark.parametrize("name", channels.names())
OTHERS = {
    "float": 0.25, "int": 7, "bool": False, "noise": "laplace", "order": "noise_first", "sigmas": (0.25, 0.5),
    "simulated": 40, "widths": (0.5, 2.0), "dof": (4.0, 30.0),
}  # fmt: skip


def other_settings(name: str) -> dict[str, object]:
    """Settings that are none of the defaults."""
    found = [s for s in channels.settings(name) if s.name != "sigma"]
    return {s.name: OTHERS.get(s.name, OTHERS.get(type(s.default).__name__)) for s in found}


@each_name
def test_what_is_shared_went_through_the_channel(name: str) -> None:
    settings = other_settings(name)
    target = from_data(network="linear", channel=name, channel_settings=settings, seed=3)
    again = from_data(network="linear", channel=name, channel_settings=settings, seed=3)
    assert torch.equal(target.g, again.g)
    assert target.g.dtype == target.client.dtype
    assert target.truth is not None and target.labels is not None
    update = target.client.update(target.truth, target.labels)
    noise = {} if target.sigma is None else {"sigma": target.sigma}
    channel = channels.get(name).of(update, target.client, 1, target.public, **noise, **settings)
    assert channel.log_prob(target.g).isfinite()
    assert not torch.equal(target.g, update.materialise())


@each_name
def test_an_observation_file_carries_the_channel(name: str, tmp_path: Path) -> None:
    target = from_data(network="linear", channel=name, channel_settings=other_settings(name))
    save(target, tmp_path / "o.safetensors")
    read = load(tmp_path / "o.safetensors")
    assert torch.equal(read.g, target.g)
    assert read.protection == target.protection and read.sigma == target.sigma
    assert read.protection.channel is not None and read.protection.channel.name == name
    assert other_settings(name).items() <= dict(read.protection.channel.settings).items()


def test_a_file_that_names_no_channel_holds_a_gaussian_one(tmp_path: Path) -> None:
    save(from_data(network="linear"), tmp_path / "o.safetensors")
    with safe_open(tmp_path / "o.safetensors", "pt") as f:
        metadata, tensors = dict(f.metadata()), {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118 (not a dict)
    assert json.loads(metadata.pop("channel")) == {"name": "gaussian", "settings": {}}
    save_file(tensors, tmp_path / "old.safetensors", metadata)
    assert load(tmp_path / "old.safetensors").protection == Protection(channel=Named("gaussian", {"sigma": 0.1}))


def test_beliefs_fall_to_the_true_channels_settings_unless_they_are_set() -> None:
    client = tiny()
    settings = {"rate": 0.25, "noise": "laplace", "mask_seed": 7}
    target = known(
        client, Observation(torch.zeros(client.update_size)), sigma=0.2, channel="masked", channel_settings=settings
    )
    optimal, whole = programs.load("models", "optimal"), Named("masked", {"sigma": 0.2, **settings})
    assert believe(optimal, target).keywords == {"channel": whole}
    believed = believe(optimal, target, {"channel": "masked:rate=0.5", "sigma": None}).keywords
    assert dict(believed["channel"].settings) == {"sigma": 0.2, **settings, "rate": 0.5}
    other = believe(optimal, target, {"channel": "pruned"}).keywords["channel"]  # what is known of the same name stays
    assert other.name == "pruned" and dict(other.settings) == {"sigma": 0.2, "rate": 0.25, "noise": "laplace"}
    assert believe(programs.load("models", "dlg"), target).keywords == {"sigma": 0.2}
    named = believe(programs.load("models", "optimal:channel=laplace"), target).keywords["channel"]
    assert named == Named("laplace", {"sigma": 0.2})


@each_name
def test_the_adversary_who_believes_in_a_channel_has_its_density(name: str) -> None:
    """`optimal` is the channel of the observation, at every setting; another setting is another density."""
    target = from_data(network="linear", channel=name, channel_settings=other_settings(name), dtype="float64")
    truth = {"y": target.labels, "g": target.g}
    optimal = programs.load("models", "optimal")

    def log_prob(**beliefs: object) -> float:
        model = poutine.condition(believe(optimal, target, beliefs), data=truth)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nodes = poutine.trace(model).get_trace(target.client, 1).nodes
        update = target.client.update(nodes["x"]["value"], target.labels)
        assert target.protection.channel is not None
        expected = channels.make(target.protection.channel, update, target.client, 1, target.public)
        if not beliefs:
            torch.testing.assert_close(nodes["g"]["fn"].log_prob(target.g), expected.log_prob(target.g))
        return float(nodes["g"]["fn"].log_prob(target.g))

    right = log_prob()
    if "sigma" in channels.check(Named(name)).settings:
        assert abs(log_prob(sigma=0.3) - right) > 1e-3


def test_settings_that_a_channel_has_not_are_refused() -> None:
    with pytest.raises(BadInput, match="channel gaussian has no setting 'rate'"):
        channels.check(Named("gaussian", {"rate": 0.5}))
    with pytest.raises(BadInput, match="channel directional has no sigma: set kappa"):
        channels.check(Named("directional", {"sigma": 0.1}))
    assert channels.check(Named("topk")) == Named("topk", {"sigma": 0.1, "rate": 0.9})
    assert channels.get("topk") is channels.TopK
