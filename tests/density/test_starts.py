"""A search that begins at what another inference read off the gradient, and one that begins elsewhere."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scenes import from_data
from torch import Tensor

from pplleak import programs
from pplleak.density import Density, build, starts, whitening
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import billiard, hmc, refractive, spear
from pplleak.inference import map as climb
from pplleak.posterior import Posterior, metrics
from pplleak.studies.attack.attack import believe

SHORT: dict[str, Any] = {"starts": 1, "steps": 60, "lr": 0.003, "polish": 2}


@pytest.fixture(scope="module")
def target() -> Observation:
    """Three digits behind ReLU, with noise that SPEAR survives, and not unhurt."""
    return from_data(
        batch_size=3, settings={"widths": (64,), "activation": "relu"}, sigma=1e-4, index=3, dtype="float64"
    )


def psnr(target: Observation, found: Posterior) -> float:
    assert target.truth is not None
    truth = target.truth.numpy()
    return float(np.mean(metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth)))


@pytest.mark.slow
def test_a_climb_that_begins_at_spears_images_is_nearer_than_they_and_than_one_that_does_not(
    target: Observation,
) -> None:
    model = believe(programs.load("models", "optimal"), target)
    read = spear.run(None, target, target.client)
    begun = climb.run(model, target, target.client, begin="spear", **SHORT)
    elsewhere = climb.run(model, target, target.client, **{**SHORT, "lr": 0.1})
    assert psnr(target, begun) > psnr(target, read) + 1 and psnr(target, begun) > psnr(target, elsewhere) + 10
    assert begun.stats["lp"].max() > elsewhere.stats["lp"].max()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [billiard, hmc], ids=["billiard", "hmc"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # hmc does not cross kinks, and says so
def test_chains_begin_at_spears_images_where_no_start_of_their_own_comes_near(sampler: ModuleType) -> None:
    five = from_data(
        batch_size=5, settings={"widths": (128,), "activation": "relu"}, sigma=1e-5, index=3, dtype="float64"
    )
    model = believe(programs.load("models", "optimal"), five)
    few: dict[str, Any] = {"starts": 1, "steps": 10, "chains": 2, "draws": 2, "warmup": 2}
    begun, elsewhere = (sampler.run(model, five, five.client, begin=name, **few) for name in ("spear", ""))
    assert psnr(five, begun) > psnr(five, spear.run(None, five, five.client)) + 1
    assert psnr(five, begun) > psnr(five, elsewhere) + 10
    assert begun.stats["lp"].max() > elsewhere.stats["lp"].max() + 100


@pytest.mark.slow
def test_the_sampler_of_one_example_begins_at_its_quotient(monkeypatch: pytest.MonkeyPatch) -> None:
    one = from_data(settings={"widths": (64,), "activation": "relu"}, sigma=1e-4, index=3, dtype="float64")
    model = believe(programs.load("models", "optimal"), one)
    few: dict[str, Any] = {"starts": 1, "steps": 2, "chains": 2, "draws": 2, "warmup": 2}
    seen: list[float | None] = []

    def located(density: Density, *, begin: Tensor | None, **how: Any) -> Any:
        assert one.truth is not None
        near = None if begin is None else density.images(begin)[0][0].numpy()
        seen.append(None if near is None else float(metrics.psnr(near, one.truth.numpy())[0]))
        return whitening.locate(density, begin=begin, **how)

    monkeypatch.setattr(refractive, "locate", located)
    for begin in ("quotient", ""):
        assert psnr(one, refractive.run(model, one, one.client, begin=begin, **few)) > 60
    assert seen[0] is not None and seen[0] > 60 and seen[1] is None


@pytest.mark.parametrize("prior", ["gaussian", "uniform"])
def test_latents_are_found_whose_images_are_given(prior: str) -> None:
    target = from_data(batch_size=2, settings={"widths": (4,)}, dtype="float64")
    density = build(believe(programs.load("models", "optimal"), target, {"prior": prior}), target.client, target)
    x, _ = density.images(density.sample_prior(2))
    made = density.images(starts.near(density, x[0]))[0][0]
    assert (made - x[0]).abs().max() < 1e-2 < (made - x[1]).abs().max()


def test_what_cannot_be_a_start_is_refused(target: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    many = from_data(batch_size=12, settings={"widths": (4,)}, labels_shared=False)
    with pytest.raises(BadInput, match="leave begin out"):
        climb.run(believe(programs.load("models", "optimal"), many), many, many.client, begin="spear", steps=2)
    model = believe(programs.load("models", "optimal"), target)
    drawn = spear.run(None, target, target.client).with_(kind="sampler")
    monkeypatch.setattr(programs, "load", lambda kind, name: lambda *given, **more: drawn)
    with pytest.raises(BadInput, match="hmc gives draws: name quotient"):
        starts.read_off(build(model, target.client, target), "hmc")
