"""A channel by its name: it makes what is shared, the observation file carries it, the model falls to its settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny
from safetensors import safe_open
from safetensors.torch import save_file
from scenes import from_data, known

from pplleak import channels, programs
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.federation.scenario import save
from pplleak.studies.attack import attack
from pplleak.studies.attack.attack import believe

each_name = pytest.mark.parametrize("name", channels.names())
OTHERS = {
    "float": 0.25, "int": 7, "noise": "laplace", "order": "noise_first", "sigmas": (0.25, 0.5), "simulated": 40,
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
    read = attack.from_file(tmp_path / "o.safetensors")
    assert torch.equal(read.observed.g, target.g)
    assert (read.channel, read.channel_settings, read.sigma) == (name, other_settings(name), target.sigma)


def test_a_file_that_names_no_channel_holds_a_gaussian_one(tmp_path: Path) -> None:
    save(from_data(network="linear"), tmp_path / "o.safetensors")
    with safe_open(tmp_path / "o.safetensors", "pt") as f:
        metadata, tensors = dict(f.metadata()), {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118 (not a dict)
    assert json.loads(metadata.pop("channel")) == {"name": "gaussian", "settings": {}}
    save_file(tensors, tmp_path / "old.safetensors", metadata)
    read = attack.from_file(tmp_path / "old.safetensors")
    assert (read.channel, read.channel_settings, read.sigma) == ("gaussian", {}, 0.1)


def test_beliefs_fall_to_the_true_channels_settings_unless_they_are_set() -> None:
    client = tiny()
    settings = {"rate": 0.25, "noise": "laplace", "mask_seed": 7}
    target = known(
        client, Observation(torch.zeros(client.update_size)), sigma=0.2, channel="masked", channel_settings=settings
    )
    masked = programs.load("models", "optimal")
    assert believe(masked, target).keywords == {"sigma": 0.2, **settings}
    assert believe(masked, target, {"rate": 0.5, "sigma": None}).keywords == {"sigma": 0.2, **settings, "rate": 0.5}
    assert believe(programs.load("models", "dlg"), target).keywords == {"sigma": 0.2}


def test_every_setting_of_a_channel_is_a_belief_of_the_model_that_believes_in_it() -> None:
    """By the same name: an adversary who knows the defence is the default."""
    believers = {"gaussian": "gaussian", "laplace": "laplace_noise", "elastic": "tag"}
    for name in channels.names():
        beliefs = {s.name: s for s in programs.settings(programs.load("models", believers.get(name, name)))}
        settings = {s.name: s for s in channels.settings(name)}
        for setting in settings.values():
            assert beliefs[setting.name].default == setting.default
        assert ("sigma" in beliefs) == ("sigma" in settings)


def test_settings_that_a_channel_has_not_are_refused() -> None:
    with pytest.raises(BadInput, match="channel gaussian has no setting 'rate'"):
        attack.resolve_channel("gaussian", settings={"rate": 0.5})
    with pytest.raises(BadInput, match="channel directional has no sigma: set kappa"):
        attack.resolve_channel("directional", sigma=0.1)
    assert attack.resolve_channel("topk") == (channels.TopK, 0.1, {"rate": 0.9})
