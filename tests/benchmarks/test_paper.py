"""The paper's experiments at tiny size: each script runs, goes on where it stopped, and tunes on other images."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from conftest import assert_moments, observe, rows, tiny
from scenes import from_data

from pplleak import channels
from pplleak.client.networks.convnet import convnet
from pplleak.density import build
from pplleak.density import density as density_module
from pplleak.density.recording.tape import Plain
from pplleak.errors import BadInput
from pplleak.models import logistic, optimal
from pplleak.priors.vae import fit as fit_vae
from pplleak.studies.attack.attack import believe


@pytest.fixture(scope="module")
def effort(paper: Callable[[str], ModuleType]) -> Any:
    return paper("attacks").Effort(steps=3, chains=4, warmup=2, draws=4, rank=4)


@pytest.fixture(scope="module", autouse=True)
def quick_vae() -> Iterator[None]:
    """A VAE of the digits that is fitted in no time: the tests look at no quality."""
    fit = fit_vae
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["pplleak.priors.vae"]

        def shorter(images: Any, **settings: Any) -> Any:
            return fit(images, **{**settings, "epochs": 1, "hidden": 8, "latents": 2})

        shorter.__signature__ = inspect.signature(fit)  # type: ignore[attr-defined]
        patch.setattr(module, "fit", shorter)
        yield


@pytest.fixture(scope="module", autouse=True)
def small_convnet() -> Iterator[None]:
    """The paper's CNN with few channels: the tests run its scripts, and look at no figure of the paper."""
    with pytest.MonkeyPatch.context() as patch:
        assert convnet.__kwdefaults__ is not None
        patch.setattr(convnet, "__kwdefaults__", convnet.__kwdefaults__ | {"channels": (4, 6), "width": 16})
        yield


@pytest.fixture()
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of six steps do not pay for the recording of their density."""
    monkeypatch.setattr(density_module, "record", lambda density, example: Plain(density))


@pytest.mark.slow
@pytest.mark.usefixtures("unrecorded")
def test_noise_defences_attack_every_cell_and_go_on_where_they_stopped(
    paper: Callable[[str], ModuleType], effort: Any, tmp_path: Path
) -> None:
    script = paper("noise_defences")
    common = {"datasets": ("digits",), "steps": (0,), "tuning": 1, "trials": 1, "workers": 1, "effort": effort}
    script.main(script.Settings(**common, images=1, out=tmp_path, defences=("gaussian", "pruned_laplace")))
    kept = rows(tmp_path / "noise_defences_images.csv")
    cells = {(r["defence"], r["mask_known"]) for r in kept}
    assert cells == {("gaussian", ""), ("pruned_laplace", "known"), ("pruned_laplace", "unknown")}
    assert {r["attack"] for r in kept} == {"l2", "l1", "cosine", "map", "ball", "mean", "no_gradient"}
    assert len(kept) == 3 * 7
    script.main(script.Settings(**common, images=2, out=tmp_path, defences=("gaussian",)))
    more = rows(tmp_path / "noise_defences_images.csv")
    assert more[: len(kept)] == kept and len(more) == len(kept) + 7
    table = paper("page").cells(rows(tmp_path / "noise_defences.csv"))
    assert table.count("\n") == 1 + 3 and "pruned + laplace, mask unknown" in table
    scored, held = {r["index"] for r in more}, {r["index"] for r in rows(tmp_path / "noise_defences_tuning.csv")}
    assert len(scored) == 2 and held and not scored & held


@pytest.mark.slow
@pytest.mark.usefixtures("unrecorded")
def test_stronger_priors_attack_with_every_prior(
    paper: Callable[[str], ModuleType], effort: Any, tmp_path: Path
) -> None:
    script = paper("stronger_priors")
    few = ("flat", "tv", "gmrf", "gaussian", "gaussian|y")
    settings = script.Settings(
        dataset="digits",
        sigmas=(0.1,),
        priors=few,
        images=1,
        tuning=1,
        trials=1,
        workers=1,
        effort=effort,
        out=tmp_path,
    )
    script.main(settings)
    made = rows(tmp_path / "stronger_priors.csv")
    assert {(r["prior"], r["decision"]) for r in made} == {(p, d) for p in few for d in ("map", "mean")} | {
        ("none", "no_gradient")
    }
    assert script.main(settings)
    assert rows(tmp_path / "stronger_priors.csv") == made
    lines = (tmp_path / "stronger_priors.md").read_text().splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == [*few[:-1], "gaussian given y"]


@pytest.mark.slow
@pytest.mark.usefixtures("unrecorded")
def test_training_time_keeps_checkpoints_and_says_their_accuracy(
    paper: Callable[[str], ModuleType], effort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPLLEAK_CACHE", str(tmp_path / "cache"))
    script = paper("training_time")
    settings = script.Settings(
        dataset="digits", steps=(0, 3), sigmas=(0.1,), images=1, workers=1, effort=effort, out=tmp_path
    )
    script.main(settings)
    made = rows(tmp_path / "training_time.csv")
    assert [(r["step"], r["decision"]) for r in made] == [(s, d) for s in "03" for d in ("map", "mean", "no_gradient")]
    assert all(0 <= float(r["accuracy"]) <= 1 for r in made)
    for found, mean, known in (made[:3], made[3:]):
        gap = float(mean["psnr_mean"]) - float(found["psnr_mean"])
        assert float(mean["delta_vs_map"]) == pytest.approx(gap, abs=2e-4)
        assert float(mean["risk"]) == float(float(mean["psnr_mean"]) < settings.leak)
        assert float(mean["risk_low"]) <= float(mean["risk"]) <= float(mean["risk_high"])
        assert not found["delta_vs_map"] and not known["delta_vs_no_gradient"]
    assert len((tmp_path / "training_time.md").read_text().splitlines()) == 2 + 2
    assert len(list((tmp_path / "cache" / "paper-convnet-digits").glob("step-*.safetensors"))) == 2


def test_half_a_search_is_no_row(paper: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = paper("attacks")
    density = build(logistic.model, tiny(), observe(tiny(), 0.1))
    effort = attacks.Effort(steps=3)
    assert attacks.climb(density, 0.1, effort, 0).shape == (1, density.dim)
    search = attacks.maximise
    stopped = lambda *a, **k: dataclasses.replace(search(*a, **k), interrupted=True)  # noqa: E731
    monkeypatch.setattr(attacks, "maximise", stopped)
    with pytest.raises(KeyboardInterrupt):
        attacks.climb(density, 0.1, effort, 0)


def test_a_search_begins_at_the_most_probable_of_many_draws_of_the_prior(paper: Callable[[str], ModuleType]) -> None:
    attacks = paper("attacks")
    density = build(logistic.model, tiny(), observe(tiny(), 0.1))
    pyro.set_rng_seed(0)
    heights = density(density.sample_prior(64)).sort(descending=True).values
    one, screened = (attacks.Effort(steps=1, starts=2, screened=n) for n in (1, 64))
    ends = {n: density(attacks.climb(density, 1e-6, effort, 0)) for n, effort in (("screened", screened), ("one", one))}
    assert (ends["screened"] >= heights[:2] - 1e-3).all()
    assert not (ends["one"] >= heights[:2] - 1e-3).all()  # the first two draws are not the highest
    with pytest.raises(BadInput, match="starts must be a positive number, not 0"):
        attacks.Effort(starts=0)


def test_the_kept_update_is_the_masked_channel_of_every_entry(paper: Callable[[str], ModuleType]) -> None:
    """Lazily what the dense m ⊙ u gives; the mask of another seed gives something else."""
    pruning = paper("pruning")
    client = tiny("convnet", (1, 8, 8), channels=(2, 3), width=4, activation="relu")
    x, y = torch.rand(3, 1, 1, 8, 8, dtype=torch.float64), torch.tensor([[1], [0], [2]])
    g = torch.randn(client.update_size, dtype=torch.float64)
    u = client.update(x, y).materialise()
    kept = pruning.pruning(client, 0.5, 7)
    mask = channels.Masked(client.update(x, y), 0.1, rate=0.5, mask_seed=7).mask
    found = kept.update(x, y)
    assert 0.3 < float(mask.mean()) < 0.7
    torch.testing.assert_close(found.materialise(), mask * u)
    torch.testing.assert_close(found.sqdist(g), (g - mask * u).square().sum(-1))
    torch.testing.assert_close(found.inner(g), (mask * u) @ g)
    torch.testing.assert_close(found.sqnorm(), (mask * u).square().sum(-1))
    weights = torch.rand(client.update_size, dtype=torch.float64)
    torch.testing.assert_close(found.sqdist(g, weights), (weights * (g - mask * u).square()).sum(-1))
    masked = channels.Masked(client.update(x, y), 0.3, rate=0.5, mask_seed=7).log_prob(g)
    torch.testing.assert_close(channels.Gaussian(found, 0.3).log_prob(g), masked)
    other = pruning.pruning(client, 0.5, 8).update(x, y)
    assert not torch.allclose(other.sqdist(g), found.sqdist(g))


@pytest.mark.slow
def test_the_chains_draw_from_a_posterior_that_is_known(paper: Callable[[str], ModuleType]) -> None:
    """Chains in the informed coordinates of logistic regression, against its exact posterior and wrong twins."""
    attacks = paper("attacks")
    client = tiny("linear", (1, 3, 3), classes=2)
    observed = observe(client, 0.3)
    density = build(functools.partial(logistic.model, sigma=0.3), client, observed)
    exact = logistic.exact_posterior(client, observed, sigma=0.3)
    mode = attacks.climb(density, 0.1, attacks.Effort(steps=60), 0)[0]
    found = attacks.sample(density, mode, mode, attacks.Effort(chains=16, warmup=20, draws=150, rank=4), 0)
    assert found.kind == "sampler" and not found.approximation
    assert_moments(found.x.reshape(16, 150, -1).astype(np.float64), exact.mean(), exact.sd())


@pytest.mark.slow
@pytest.mark.usefixtures("unrecorded")
def test_a_posterior_on_a_smooth_network_says_so(paper: Callable[[str], ModuleType], effort: Any) -> None:
    """On a ReLU client the chains run on a surrogate, with a k-hat, unless beta is 0; pruned or not."""
    attacks, pruning = paper("attacks"), paper("pruning")
    target = from_data("digits", network="convnet", index=1, sigma=0.1)
    for client in (target.client, pruning.pruning(target.client, 0.5, 3)):
        there = dataclasses.replace(target, client=client)
        rows, found = attacks.bayes(there, "gaussian", 0.1, [0.2], effort, 0)
        assert [r["attack"] for r in rows] == ["map", "mean", "ball"]
        assert "softplus" in found.approximation and found.log_weights is not None
        assert rows[1]["seconds"] > rows[0]["seconds"] > 0
        _, exact = attacks.bayes(there, "gaussian", 0.1, [], dataclasses.replace(effort, beta=0.0), 0)
        assert exact.kind == "sampler" and not exact.approximation


def test_the_bayes_rows_believe_in_the_channel(paper: Callable[[str], ModuleType]) -> None:
    """In every cell the density is that of the cell's channel, named by hand, and of no other cell's."""
    attacks, script = paper("attacks"), paper("noise_defences")
    plain = from_data("digits", network="convnet", index=1).client
    s = math.sqrt(2) / 10
    named = {  # the mask of a cell is that of the image's index
        ("gaussian", ""): "gaussian:sigma=0.1",
        ("laplace", ""): f"laplace:sigma={s}",
        ("pruned_gaussian", "known"): "masked:rate=0.5,noise=gaussian,mask_seed=1,sigma=0.1",
        ("pruned_laplace", "known"): f"masked:rate=0.5,noise=laplace,mask_seed=1,sigma={s}",
        ("pruned_gaussian", "unknown"): "pruned:rate=0.5,noise=gaussian,sigma=0.1",
        ("pruned_laplace", "unknown"): f"pruned:rate=0.5,noise=laplace,sigma={s}",
    }
    for cell in named:
        observed = script.observed_of(("digits", "convnet", 0, *cell), 1, None)
        density = attacks.density_of(observed, "gaussian")
        z = density.sample_prior(3)
        for other, channel in named.items():
            model = believe(optimal.model, observed, {"prior": "gaussian", "channel": channel})
            gap = (build(model, plain, observed)(z) - density(z)).abs()
            assert gap.max() < 0.1 if other == cell else gap.min() > 1, (cell, other, gap)
