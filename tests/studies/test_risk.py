"""Claimed against realised risk where both are known exactly, and the command that measures them."""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import one_line, run, tiny
from conftest import LIMIT
from scenes import from_data
from scipy import stats

from pplleak import programs
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, decisions, metrics
from pplleak.studies.compare import compare
from pplleak.studies.risk import limits, risk

PIXELS, IMAGES, DRAWS = 16, 120, 800
DELTAS = (0.14, 0.17, 0.19, 0.21, 0.24)  # RMS, where the posterior sd is 0.2
SD = 0.2


@functools.cache
def measured(width: float) -> tuple[dict[str, Any], ...]:
    """Rows of an adversary whose posterior is `width` times as wide as the truth is spread."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(IMAGES):
        centre = generator.random((1, 1, 4, 4))
        truth = centre + SD * generator.standard_normal(centre.shape)
        noise = generator.standard_normal((8, DRAWS // 8, *centre.shape))
        densest = np.square(noise[:4]).sum((2, 3, 4, 5)).argmin()  # a mode that is not the centre, which is the answer
        draws = centre + width * SD * noise
        mode = draws.reshape(-1, *centre.shape)[densest]
        found = Posterior(draws, np.zeros((8, DRAWS // 8, 1)), mode, "sampler", truth=truth)
        rows += [{"index": index, "inference": "i", **r} for r in risk.score(found, risk.DISTANCES["rms"], DELTAS)]
    return tuple(rows)


def exact(delta: float) -> float:
    """The Bayes success: the mass of a Gaussian in the ball around its mean."""
    return float(stats.chi2.cdf(PIXELS * (delta / SD) ** 2, PIXELS))


@pytest.mark.slow
def test_the_ball_reaches_the_analytic_bayes_risk_and_no_decision_beats_it() -> None:
    rows = measured(1.0)
    for curve in risk.curves(rows):
        bayes = exact(curve["delta"])
        error = np.sqrt(bayes * (1 - bayes) / IMAGES)
        assert curve["realised"] < bayes + LIMIT * error
        mine = [r["claimed"] for r in rows if (r["decision"], r["delta"]) == (curve["decision"], curve["delta"])]
        if curve["decision"] in ("mean", "ball"):  # a draw is not the centre, however central or probable
            assert abs(curve["realised"] - bayes) < LIMIT * error
            assert abs(np.mean(mine) - bayes) < 0.02 + LIMIT * np.std(mine) / np.sqrt(IMAGES)
        elif curve["delta"] == 0.19:
            assert curve["realised"] < bayes - 0.1 and np.mean(mine) < bayes - 0.1, "the test sees no worse decision"


@pytest.mark.slow
def test_a_ball_that_stays_where_it_starts_does_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "_ball", lambda propose, choose, starts, delta: starts[0])
    found = [c for c in risk.curves(measured.__wrapped__(1.0)) if c["decision"] == "ball"]
    bayes = np.array([exact(c["delta"]) for c in found])
    gaps = (bayes - [c["realised"] for c in found]) / np.sqrt(bayes * (1 - bayes) / IMAGES)
    assert gaps.max() > LIMIT


@pytest.mark.slow
def test_claimed_and_realised_agree_under_the_truth_and_not_under_a_narrower_posterior() -> None:
    right, narrow = (risk.curves(measured(width)) for width in (1.0, 0.7))
    assert np.mean([c["agrees"] for c in right]) >= 0.9
    assert np.mean([c["agrees"] for c in narrow]) < 0.3
    assert all(c["claimed"] >= c["realised"] for c in narrow if c["decision"] == "mean")


def test_the_interval_is_that_of_the_binomial_and_a_point_claims_nothing() -> None:
    rows = [
        {"inference": "map", "decision": "mode", "delta": 0.1, "claimed": None, "success": int(k < 3)}
        for k in range(10)
    ]
    (curve,) = risk.curves(rows)
    assert (curve["realised"], curve["claimed"], curve["agrees"]) == (0.3, None, None)
    assert curve["low"] == pytest.approx(stats.beta.ppf(0.025, 3, 8))
    assert curve["high"] == pytest.approx(stats.beta.ppf(0.975, 4, 7))


def test_the_distances_are_those_of_their_names_and_match_the_examples_of_a_batch() -> None:
    generator = np.random.default_rng(0)
    x, truth = generator.random((2, 1, 8, 8)) * 1.2, generator.random((3, 2, 1, 8, 8))
    of = {n: d(x, truth) for n, d in risk.DISTANCES.items()}
    order = metrics.match(x, truth[1])
    gap = (x[order] - truth[1]).reshape(2, -1)
    assert np.allclose(of["l2"][1], np.linalg.norm(gap, axis=1)) and np.allclose(of["rms"] * 8, of["l2"])
    assert np.allclose(of["psnr"][1], metrics.psnr(x[order], truth[1]))
    assert np.allclose(of["ssim"][1], 1 - metrics.ssim(x[order], truth[1]))
    assert np.allclose(risk.DISTANCES["l2"](x[::-1], truth), of["l2"]), "the order of the examples counts"
    assert bool(risk.DISTANCES["psnr"].within(np.array(20.0), 18.0)) and not risk.DISTANCES["rms"].within(
        np.array(0.2), 0.1
    )
    radii = [risk.DISTANCES[n].radius(t, 64) for n, t in (("rms", 0.1), ("l2", 0.8), ("psnr", 20.0))]
    assert radii == pytest.approx([0.8] * 3) and risk.DISTANCES["ssim"].radius(0.1, 64) is None


def test_draws_from_the_model_are_its_own_and_differ_by_seed() -> None:
    base = from_data("digits", sigma=0.5)
    one, again, other = (risk.from_model(base, "logistic", {}, seed) for seed in (1, 1, 2))
    assert one.truth is not None and again.truth is not None and other.truth is not None
    assert torch.equal(one.truth, again.truth) and not torch.equal(one.truth, other.truth)
    assert one.labels is not None and other.labels is not None
    u = one.client.update(one.truth, one.labels).materialise()
    noise = (one.g - u).double()
    assert abs(float(noise.square().mean().sqrt()) - 0.5) < LIMIT * 0.5 / (2 * noise.numel()) ** 0.5
    with pytest.raises(BadInput, match=r"known only up to its factor 'tv'.*gmrf"):
        risk.from_model(base, "optimal:prior=tv")


# -- the command -----------------------------------------------------------------------------------------------------

SETTINGS = [w for n in ("map", "hmc") for w in tiny(n, n)]


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


@pytest.mark.slow
@pytest.mark.usefixtures("short_trajectories")
@pytest.mark.parametrize("source", ["data", "model"])
def test_risk_writes_every_image_its_curves_and_a_picture(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["risk", "--draws-from", source, "--count", "2", "--deltas", "0.1", "0.3", *SETTINGS]
    assert run([*argv, "--out", str(tmp_path)]) == 0
    rows, curves = lines(tmp_path / "risk_images.csv"), lines(tmp_path / "risk.csv")
    assert len(rows) == 2 * 2 * (1 + 4) and len(curves) == 2 * (1 + 4)
    said = json.loads((tmp_path / "risk.json").read_text())
    assert said["settings"]["draws_from"] == source and len(said["curves"]) == len(curves)
    mine = [r for r in rows if (r["inference"], r["decision"], r["delta"]) == ("hmc", "mean", "0.3")]
    (curve,) = [c for c in curves if (c["inference"], c["decision"], c["delta"]) == ("hmc", "mean", "0.3")]
    assert float(curve["realised"]) == np.mean([float(r["distance"]) <= 0.3 for r in mine])
    assert float(curve["claimed"]) == pytest.approx(np.mean([float(r["claimed"]) for r in mine]))
    assert (tmp_path / "risk.png").read_bytes().startswith(b"\x89PNG")
    assert "claimed / realised of 2 images" in capsys.readouterr().out


@pytest.mark.slow
def test_risk_goes_on_where_it_was_left_and_ctrl_c_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["risk", "--inference", "map", "--map.starts", "2", "--map.steps", "5", "--out"]

    def stops(label: str, total: int) -> Iterator[int]:
        yield from range(min(total, 2))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pplleak.cli._where.bar", stops)
        assert run([*argv, str(tmp_path / "a"), "--count", "3"]) == 130
    assert "the same command goes on" in capsys.readouterr().out
    before = lines(tmp_path / "a" / "risk_images.csv")
    assert {r["index"] for r in before} == {"0", "1"}
    attacked: list[int] = []
    real = compare.attack
    monkeypatch.setattr(
        compare, "attack", lambda t, *a, **k: attacked.append(t.provenance["index"]) or real(t, *a, **k)
    )
    assert run([*argv, str(tmp_path / "a"), "--count", "3"]) == 0
    assert attacked == [2]
    assert run([*argv, str(tmp_path / "b"), "--count", "3"]) == 0
    assert lines(tmp_path / "a" / "risk_images.csv") == lines(tmp_path / "b" / "risk_images.csv")
    one_line([*argv, str(tmp_path / "a"), "--sigma", "0.3"], capsys, "holds a run with sigma = None, this one has 0.3")
    assert run([*argv, str(tmp_path / "a"), "--count", "1"]) == 0
    assert lines(tmp_path / "a" / "risk_images.csv") == lines(tmp_path / "b" / "risk_images.csv"), "rows were lost"
    assert {c["images"] for c in lines(tmp_path / "a" / "risk.csv")} == {"1"}


@pytest.mark.slow
def test_labels_are_recovered_from_the_gradient_of_the_image_that_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    real = compare.attack

    def seen(target: Observation, *args: Any, **settings: Any) -> Posterior:
        said.append(target.provenance)
        return real(target, *args, **settings)

    monkeypatch.setattr(compare, "attack", seen)
    argv = ["risk", "--draws-from", "model", "--labels", "recovered", "--count", "6", "--inference", "map",
            "--map.starts", "1", "--map.steps", "2", "--sigma", "0.001"]  # fmt: skip
    assert run([*argv, "--out", str(tmp_path)]) == 0
    found = [s["recovered_labels"] for s in said]
    assert len({f["labels"][0] for f in found}) > 1 and all(f["right"] for f in found)


def test_every_image_has_noise_of_its_own_and_image_0_that_of_attack() -> None:
    plain, same, other = (from_data(noise_seed=s).g for s in (None, 0, 1))
    assert torch.equal(plain, same) and not torch.equal(plain, other)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--deltas", "0.1", "-1"], "deltas must be a positive number"),
        (["--count", "0"], "--count must be at least 1"),
        (["--index", "296", "--count", "2"], "images 0 to 296"),
        (["--draws-from", "model", "--prior", "tv"], "cannot be drawn from"),
        (["--draws-from", "model", "--seed", "-1"], "--seed"),
        (["--inference", "map,map"], "--inference names one twice"),
        (["--deltas", "0.2", "0.2"], "name one twice"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_line(["risk", "--inference", "map", "--out", str(tmp_path), *words], capsys, said)


# -- bounds ----------------------------------------------------------------------------------------------------------

EXACT = ["--network", "linear", "--model", "linear_gaussian", "--inference", "laplace", "--laplace.starts", "1",
         "--laplace.steps", "1", "--laplace.chains", "1", "--laplace.draws", "40"]  # fmt: skip


@pytest.mark.slow
def test_the_bounds_are_drawn_where_images_come_from_the_model_and_only_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["risk", *EXACT, "--count", "2", "--deltas", "0.1"]
    assert run([*argv, "--draws-from", "model", "--out", str(tmp_path / "a")]) == 0
    assert "no adversary has a smaller RMS error than 0.08" in capsys.readouterr().out
    found = json.loads((tmp_path / "a" / "risk.json").read_text())["bounds"]
    target = risk.from_model(from_data("digits", network="linear", sigma=0.1), "linear_gaussian", {}, 0)
    exact = programs.model("linear_gaussian").exact_posterior(target.client, target)
    assert found["van_trees"]["square"] == pytest.approx(float(exact.covariance.trace()), rel=1e-3)
    assert found["rero"] == []
    assert run([*argv, "--draws-from", "data", "--out", str(tmp_path / "b")]) == 0
    assert "bounds" not in json.loads((tmp_path / "b" / "risk.json").read_text())


def test_behind_dpsgd_rero_is_among_them_and_a_kinked_network_says_why_it_has_no_van_trees() -> None:
    base = from_data("digits", network="mlp", settings={"widths": (4,), "activation": "relu"}, channel="dpsgd",
                            channel_settings={"noise_multiplier": 1.0})  # fmt: skip
    target = risk.from_model(base, "optimal", {}, 0)
    found = limits.of_model(target, "optimal", {}, risk.DISTANCES["rms"], (0.2, 0.3))
    assert found.van_trees is None and "kinks" in found.notes[0]
    assert 0 < found.guess[0.2] < found.success[0.2] < found.success[0.3] < 1
    assert found.success[0.3] > stats.norm.cdf(stats.norm.ppf(found.guess[0.3]) + 1.0), "κ is taken at its upper limit"
    assert limits.of_model(target, "optimal", {}, risk.DISTANCES["ssim"], (0.2,)).success == {}


def test_the_realised_error_is_the_root_mean_square_over_images() -> None:
    rows = [{"inference": "i", "decision": "mean", "index": k, "example": 0, "delta": d, "distance": v}
            for k, v in enumerate((0.3, 0.4)) for d in (0.1, 0.2)]  # fmt: skip
    rms, _ = limits.realised_rms(rows, risk.DISTANCES["rms"], 4)["i", "mean"]
    assert rms == pytest.approx(math.sqrt(0.125))
    assert limits.realised_rms(rows, risk.DISTANCES["l2"], 4)["i", "mean"][0] == pytest.approx(rms / 2)
    assert limits.realised_rms(rows, risk.DISTANCES["psnr"], 4) == {}
