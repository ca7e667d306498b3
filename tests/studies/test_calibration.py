"""Calibration: statistics where the answer is known, and a small matrix of models and inferences that must hold."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pytest
import scenes
import torch
from conftest import LIMIT, tiny
from scenes import from_data
from scipy import stats

from pplleak import density, programs
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.studies.attack import attack
from pplleak.studies.calibration import calibration
from pplleak.studies.calibration import draws as truths
from pplleak.studies.calibration.calibration import judge, pit
from pplleak.studies.calibration.draws import LEVELS, QUANTITIES, TWINS, Draw
from pplleak.studies.risk import risk

# -- statistics of posteriors that are known -------------------------------------------------------------------------

COUNT, PIXELS, RANKED = 120, 12, 99
SD = 0.2


@functools.cache
def known(width: float = 1.0, shift: float = 0.0) -> list[Draw]:
    """Truths from Normal(0, SD²) around the centre of a posterior `width` times as wide, `shift` sds off; pixels of an
    image are dependent."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(COUNT):
        common, own = generator.normal(size=(RANKED + 1, 1)), generator.normal(size=(RANKED + 1, PIXELS))
        x = SD * (0.6 * common + 0.8 * own)
        truth, draws = x[0], x[1:]
        ranks, inside = [], []
        for factor, more in TWINS.values():
            moved = width * factor * draws + (shift + more * width) * SD
            values = [moved, moved.mean(1)[:, None]]
            true = [truth, truth.mean()[None]]
            below = [(v < t).sum(0) for v, t in zip(values, true, strict=True)]
            ranks.append(np.r_[below[0], -1, -1, below[1], -1, -1])
            half = [stats.norm.ppf((1 + level) / 2) * width * factor * SD for level in LEVELS]
            centre = (shift + more * width) * SD
            inside.append([(np.abs(truth - centre) <= h).mean() for h in half])
        made.append(Draw(np.stack(ranks), RANKED, np.array(inside), (width * SD) ** 2,
                         float(((truth - shift * SD) ** 2).mean()), 20.0, 1.0, 500.0, np.nan, True, 1.0))  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("width", "shift", "word"),
    [
        (1.0, 0.0, "calibrated"),
        (0.75, 0.0, "too narrow"),
        (1.4, 0.0, "too wide"),
        (1.0, 0.5, "shifted"),
        (1.0, -0.5, "shifted"),
    ],
)
def test_the_verdict_names_what_is_wrong(width: float, shift: float, word: str) -> None:
    assert judge(pit(known(width, shift))).word == word


def test_the_twins_of_a_right_posterior_are_those_of_their_names() -> None:
    np.testing.assert_array_equal(pit(known(), "narrow"), pit(known(0.75)))
    np.testing.assert_array_equal(pit(known(), "shifted"), pit(known(1.0, 0.25)))


@pytest.mark.parametrize("twin", ["", "narrow"])
def test_intervals_cover_what_they_must_with_the_error_over_truths(twin: str) -> None:
    factor = TWINS[twin][0]
    for row in calibration.coverage(known(), twin):
        expected = 2 * stats.norm.cdf(factor * stats.norm.ppf((1 + row["level"]) / 2)) - 1
        assert abs(row["inside"] - expected) < LIMIT * row["se"]
        assert row["low"] < row["inside"] < row["high"]
        independent = np.sqrt(expected * (1 - expected) / COUNT / PIXELS)
        assert row["se"] > independent, "pixels were taken for independent ones"


def test_the_squared_error_is_the_expected_one_and_that_of_a_narrow_posterior_is_not() -> None:
    right, narrow = calibration.error_ratio(known()), calibration.error_ratio(known(0.75))
    assert abs(right["ratio"] - 1) < LIMIT * right["se"]
    assert abs(narrow["ratio"] - 1 / 0.75**2) < LIMIT * narrow["se"]
    assert narrow["ratio"] - 1 > LIMIT * narrow["se"]


@pytest.mark.slow
def test_a_right_posterior_is_called_wrong_as_rarely_as_promised() -> None:
    generator = np.random.default_rng(1)
    words = [judge(generator.random((30, 6 + len(QUANTITIES)))).word for _ in range(400)]
    wrong = np.mean([w != "calibrated" for w in words])
    assert wrong < calibration.SIGNIFICANT + LIMIT * np.sqrt(calibration.SIGNIFICANT / len(words))


def test_arviz_reads_the_ranks_and_finds_the_same() -> None:
    for width, passes in ((1.0, True), (0.6, False)):
        tree = calibration.to_arviz(known(width))
        assert set(tree["prior_sbc"].data_vars) == {"x", "mean_intensity"}
        p = tree["prior_sbc"].dataset.azstats.uniformity_test(dim=["chain", "draw"], method="pot_c")[0]
        assert (float(p["x"].min()) > 1e-3) is passes
    drawn = arviz.plot_ecdf_pit(calibration.to_arviz(known()), var_names=["mean_intensity"], backend="none")
    assert drawn is not None


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 3 draws, not 2"):
        calibration.summarise(known()[:2])


# -- a truth in its posterior ----------------------------------------------------------------------------------------


def base(sigma: float = 0.1, shape: tuple[int, ...] = (1, 2, 2), **client: Any) -> Observation:
    made = tiny(shape=shape, **client)
    public = torch.rand(60, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    observed = from_data()
    zeros = torch.zeros(made.update_size, dtype=made.dtype)
    blank = dataclasses.replace(observed, g=zeros, labels=torch.zeros(1, dtype=torch.long))
    return scenes.known(made, blank, public=public, sigma=sigma)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("model", ["optimal", "logistic"])
def test_the_log_likelihood_of_an_image_is_that_of_its_materialised_gradient(model: str, shared: bool) -> None:
    target = base()
    if not shared:
        target = dataclasses.replace(target, labels=None)
    target = risk.from_model(target, model, seed=3)
    believed = attack.believe(programs.load("models", model), target)
    built = density.build(believed, target.client, target)
    x = torch.rand(5, 1, 1, 2, 2, dtype=torch.float64)
    classes = [int(target.labels[0])] if target.labels is not None else [0, 1, 2]
    each = []
    for label in classes:
        for image in x:
            u = target.client.update(image, torch.tensor([label])).materialise()
            each.append(torch.distributions.Normal(u, 0.1).log_prob(target.g).sum())
    expected = torch.stack(each).reshape(len(classes), 5).logsumexp(0) - np.log(len(classes))
    torch.testing.assert_close(truths.log_likelihood(built, x), expected)


def test_a_truth_lies_nowhere_near_where_an_inference_of_the_same_seed_begins() -> None:
    target = risk.from_model(base(), "optimal", seed=0)
    believed = attack.believe(programs.load("models", "optimal"), target)
    built = density.build(believed, target.client, target)
    pyro.set_rng_seed(0)
    starts = built.sample_prior(8)
    assert target.latents is not None
    truth = built.unconstrain({n: v[None] for n, v in target.latents.items()})
    assert float((starts - truth).abs().max(1).values.min()) > 1e-3


def test_chains_are_thinned_to_what_they_are_worth() -> None:
    x = np.random.default_rng(0).normal(size=(2, 300, 1, 1, 2, 2)).cumsum(1)  # a random walk
    from pplleak.posterior import Posterior

    slow = Posterior(x, np.zeros((2, 300, 1)), x[0, 0], "sampler")
    assert slow.ess_min is not None and len(truths.thinned(slow)) == int(slow.ess_min) < 30
    free = slow.with_(kind="approximation")
    assert len(truths.thinned(free)) == RANKED and truths.thinned(free)[-1] == 599


def test_a_point_has_nothing_to_calibrate() -> None:
    with pytest.raises(BadInput, match="gives a point, without a posterior to calibrate"):
        truths.make(base(), "optimal", "map", 0, settings={"starts": 1, "steps": 2})


# -- the matrix ------------------------------------------------------------------------------------------------------

FIT = {"starts": 1, "steps": 30}
HMC = {"chains": 8, "draws": 30, "warmup": 30, **FIT}
SVI = {"guide": "normal", "iterations": 40, "particles": 8, **FIT}


@functools.cache
def calibrated(
    inference: str, model: str = "optimal", sigma: float = 0.02, count: int = 9, believed: float | None = None
) -> tuple[Draw, ...]:
    """Truths from a prior fitted to 8x8 digits, behind a small smooth network."""
    digits = from_data(settings={"widths": (16,)}, sigma=sigma)
    settings: dict[str, Any] = {"hmc": HMC, "laplace": FIT, "svi": SVI}[inference]
    adversary = {} if believed is None else {"sigma": believed}
    return tuple(truths.make(digits, model, inference, k, adversary=adversary, settings=settings) for k in range(count))


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["hmc", "laplace"])
def test_the_posterior_is_calibrated_and_its_wrong_twins_are_not(inference: str) -> None:
    found = calibration.summarise(calibrated(inference))
    assert found["verdict"]["word"] == "calibrated" and found["sbc_p_min"] > 1e-4, found["checks"]
    ninety = found["coverage"][LEVELS.index(0.9)]
    assert abs(ninety["inside"] - 0.9) < LIMIT * ninety["se"] and ninety["se"] < 0.02
    assert {t: v["word"] for t, v in found["twins"].items()} == {"narrow": "too narrow", "shifted": "shifted"}
    assert found["twins"]["narrow"]["p"] < 1e-4 and found["twins"]["shifted"]["p"] < 1e-3


@pytest.mark.slow
def test_an_adversary_who_believes_less_noise_than_there_is_is_too_sure() -> None:
    found = calibration.summarise(calibrated("laplace", believed=0.01))
    assert found["verdict"]["word"] == "too narrow" and found["verdict"]["p"] < 1e-4
    assert found["squared_error"]["ratio"] > 2


CENTRED = """
import pyro, torch
import pyro.distributions as dist
from pplleak import channels

def model(client, batch_size=1, *, sigma=0.1):
    cov = 0.09 * torch.block_diag(*[0.1 * torch.eye(4) + 0.9] * 16)
    shaped = dist.transforms.ReshapeTransform((64,), (1, 8, 8))
    pixels = dist.MultivariateNormal(torch.full((64,), 0.5), cov).expand([batch_size])
    x = pyro.sample("x", dist.TransformedDistribution(pixels, [shaped]).to_event(1))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
"""


@pytest.mark.slow
def test_mean_field_is_too_narrow_where_pixels_are_correlated(tmp_path: Path) -> None:
    (tmp_path / "centred.py").write_text(CENTRED)  # much noise: the posterior is as correlated as the prior
    found = calibration.summarise(calibrated("svi", str(tmp_path / "centred.py"), sigma=3.0, count=6))
    assert found["verdict"]["word"] == "too narrow", found["checks"]
    assert found["coverage"][LEVELS.index(0.9)]["high"] < 0.9
