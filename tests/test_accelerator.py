"""The same numbers on an accelerator as on the processor. Skipped where there is none; PPLLEAK_TEST_DEVICE names
another device than the machine's own (`cpu` runs these tests against themselves)."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from command_line import command
from scenes import from_data
from torch import Tensor

from pplleak import channels, priors
from pplleak.federation.observation import Observation
from pplleak.federation.scenario import torch_device
from pplleak.posterior import Posterior
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack

DEVICE = os.environ.get("PPLLEAK_TEST_DEVICE", torch_device("auto").type)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu" and "PPLLEAK_TEST_DEVICE" not in os.environ, reason="no accelerator here"),
]
RELU: dict[str, Any] = {"widths": (16,), "activation": "relu"}
CNN: dict[str, Any] = {"channels": (4, 4), "width": 12}
FEW: dict[str, Any] = {"starts": 2, "steps": 40}
# inference -> network and its settings, what it is run with
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "map": ("mlp", {"widths": (16,)}, {"starts": 2, "steps": 400}),
    "laplace": ("mlp", {"widths": (16,)}, {**FEW, "chains": 2, "draws": 20}),
    "svi": ("mlp", {"widths": (16,)}, {**FEW, "chains": 2, "draws": 20, "iterations": 20}),
    "hmc": ("convnet", {**CNN, "activation": "tanh"}, {**FEW, "chains": 32, "draws": 40, "warmup": 40}),
    "langevin": ("mlp", {"widths": (16,)}, {**FEW, "chains": 8, "draws": 20, "warmup": 20}),
    "nuts": ("mlp", {"widths": (16,)}, {**FEW, "chains": 1, "draws": 4, "warmup": 4, "max_tree_depth": 3}),
    "smc": ("mlp", {"widths": (16,)}, {"islands": 2, "particles": 8}),
    "ball": ("mlp", {"widths": (16,)}, {**FEW, "samples": 2}),
    "billiard": ("convnet", {**CNN, "activation": "relu"}, {**FEW, "chains": 32, "draws": 8, "warmup": 12}),
    "elliptical": ("convnet", {**CNN, "activation": "relu"}, {"chains": 32, "draws": 8, "warmup": 8, "steps": 20}),
    "refractive": ("mlp", RELU, {**FEW, "chains": 8, "draws": 20, "warmup": 20}),
    "quotient": ("mlp", RELU, {}),
    "imprint": ("mlp", RELU, {}),
    "spear": ("mlp", {"widths": (64,), "activation": "relu"}, {}),
}


@functools.cache
def observed(network: str, settings: tuple[tuple[str, Any], ...], device: str) -> Observation:
    return from_data(network=network, settings=dict(settings), sigma=0.05, device=device)


def result(name: str, device: str) -> Posterior:
    network, settings, run = CASES[name]
    return attack(observed(network, tuple(settings.items()), device), "optimal", name, settings=run, seed=0)


@pytest.mark.parametrize("name", CASES)
def test_an_inference_runs_where_the_client_is(name: str) -> None:
    found = result(name, DEVICE)
    assert np.isfinite(found.x).all() and found.x.std() > 0
    if found.kind == "point" and name != "ball":  # which chance has no part in, or none that is left: the same as here
        np.testing.assert_allclose(found.x, result(name, "cpu").x, atol=2e-2)


def test_an_exact_posterior_is_the_same_within_its_monte_carlo_error() -> None:
    """Of the mean of every pixel; the wrong twin is a posterior of another observation."""
    run = {"starts": 4, "steps": 100, "chains": 32, "draws": 100, "warmup": 60}
    settings = (("widths", (16,)),)
    here, there = (attack(observed("mlp", settings, d), "optimal", "hmc", settings=run) for d in ("cpu", DEVICE))
    assert here.converged and there.converged
    error = np.sqrt((here.sd**2 + there.sd**2) / min(here.ess_min or 1, there.ess_min or 1))
    assert (np.abs(here.mean - there.mean) / error).max() < 5
    other = attack(from_data(settings=dict(settings), sigma=0.05, index=1), "optimal", "hmc", settings=run)
    assert (np.abs(other.mean - there.mean) / error).max() > 20


def test_a_seed_has_the_same_noise_on_all_devices() -> None:
    for channel in ("gaussian", "laplace", "quantised"):
        here, there = (from_data(settings={"widths": (8,)}, channel=channel, device=d) for d in ("cpu", DEVICE))
        assert there.g.device.type == DEVICE and there.client.device.type == DEVICE
        torch.testing.assert_close(here.g, there.g.cpu())


@pytest.mark.parametrize("network", ["mlp", "lenet", "convnet", "resnet20", "vit"])
def test_an_update_keeps_the_precision_of_its_numbers(network: str) -> None:
    """Tensor cores round float32 factors to ten bits unless they are told not to: an error of 1e-3."""
    x = observed(network, (), "cpu").truth
    assert x is not None

    def gradients(device: str, dtype: str) -> list[Tensor]:
        client = from_data(network=network, device=device, dtype=dtype).client
        image, label = x.to(device, client.dtype), torch.zeros(1, dtype=torch.long, device=device)
        both = client.update(image, label).materialise(), client.materialised(image, label).materialise()
        return [u.cpu().double().flatten() for u in both]

    exact, _ = gradients("cpu", "float64")
    assert all(float((u - exact).norm() / exact.norm()) < 2e-5 for u in gradients(DEVICE, "float32"))


@pytest.mark.parametrize("name", channels.names())
def test_a_channel_gives_the_same_density(name: str) -> None:
    given: dict[str, Any] = {"sigma": 0.1} if "sigma" in {s.name for s in channels.settings(name)} else {}
    named, values = channels.check(Named(name, given)), []
    g = None
    for device in ("cpu", DEVICE):
        client = from_data(settings={"widths": (8,)}, device=device, dtype="float64").client
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(3, *client.input_shape, dtype=torch.float64, generator=generator).to(device)
        u = client.update(x, torch.tensor([0, 1, 2], device=device))
        images = torch.rand(40, *client.input_shape, generator=generator)
        with pyro.validation_enabled(False):
            torch.manual_seed(0)
            law = channels.make(named, u, client, 3, images)
            g = law.sample().cpu() if g is None else g
            values.append(float(law.log_prob(g.to(device))))
    assert values[0] == pytest.approx(values[1], rel=1e-6, abs=1e-6)


@pytest.mark.usefixtures("quick_priors")
@pytest.mark.parametrize("name", sorted(set(priors.names()) - {"sentences", "records"}))
def test_the_most_probable_image_of_a_prior_is_found(name: str) -> None:
    found = attack(observed("mlp", (("widths", (16,)),), DEVICE), f"optimal:prior={name}", "map", settings=FEW)
    assert np.isfinite(found.x).all()


def test_the_command_line_runs_on_it(tmp_path: Path) -> None:
    out = tmp_path / "attack"
    few = ("--inference.chains", "16", "--inference.draws", "50")
    assert command("attack", "--device", DEVICE, *few, "--out", out) == 0
    assert (out / "attack.png").stat().st_size > 0
