"""The point estimate, seeds, and what an interrupted inference keeps."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    observe,
    tiny,
)
from test_inference import FEW, Case, case, each_inference, run

from pplleak import density, programs
from pplleak.errors import BadInput
from pplleak.posterior import Posterior
from pplleak.progress import ProgressBar


def exact_mode(at: Case) -> tuple[np.ndarray, np.ndarray]:
    """The mode of p(x | g, y) and the posterior sds: the grid's weights without the volume across it."""
    exact = at.exact(cells=200_001)
    log_density = exact.weight.log() - (exact.centre.shape[1] - 1) * exact.width.log()
    return exact.centre[log_density.argmax()].numpy(), exact.sd().numpy()


@pytest.mark.parametrize("where", ["known label", "gaussian"])
@pytest.mark.parametrize("optimizer", [pytest.param("adam", marks=pytest.mark.slow), "lbfgs"])
def test_map_is_the_exact_mode(where: str, optimizer: str) -> None:
    at = case(where)
    mode, sd = exact_mode(at)

    def finds(x: np.ndarray) -> bool:
        return bool(np.all(np.abs(x.ravel() - mode) < 0.005 * sd))

    posterior = run("map", at, starts=4, steps=400 if optimizer == "adam" else 40, optimizer=optimizer)
    assert finds(posterior.mode)
    assert np.array_equal(posterior.x[0, 0], posterior.mode)
    assert not finds(posterior.mode + 0.01 * sd.reshape(posterior.mode.shape))
    if where == "known label":
        assert not finds(at.exact().mean().numpy())  # the mean of a skewed posterior is another decision


def test_map_keeps_the_best_iterate_of_the_best_start() -> None:
    """At a learning rate that overshoots, the last iterate is not the best; what is kept is, at the value it says."""
    posterior = run("map", case("known label"), starts=4, steps=40, lr=2.0)
    curve = posterior.curves["log_density"]
    assert posterior.stats["lp"][0, 0] == curve.max()
    assert curve[-1].max() < curve.max()
    at = case("known label")
    built = density.build(at.model, at.client, at.observed)
    z = built.unconstrain({"x": torch.as_tensor(posterior.x[0])})
    assert float(built(z, jacobian=False)) == pytest.approx(float(curve.max()), rel=1e-9)


@pytest.mark.slow
def test_map_says_that_it_was_still_climbing() -> None:
    client = tiny("linear", classes=2, zero=False)
    steep = Case(client, observe(client, 0.002), 0.002)
    assert any("not at a maximum" in d for d in run("map", steep, starts=1, steps=10).doubts)
    assert run("map", steep, starts=1, steps=500).converged


@pytest.mark.parametrize("where", ["known label", "gaussian"])
def test_newton_steps_end_a_climb_that_was_stopped_short(where: str) -> None:
    at = case(where)
    mode, sd = exact_mode(at)
    short, ended = (run("map", at, starts=2, steps=8, newton=n) for n in (0, 20))
    assert np.abs((short.mode.ravel() - mode) / sd).max() > 0.2
    assert np.abs((ended.mode.ravel() - mode) / sd).max() < 0.045  # they rest where a step gains less than 1e-3 nats
    assert ended.stats["lp"] > short.stats["lp"]
    assert not any("still climbing" in d for d in ended.doubts)


def test_ctrl_c_in_newton_s_steps_keeps_the_climb() -> None:
    whole = run("map", case("known label"), **FEW["map"])
    part = run("map", case("known label"), interrupting("curvature", 0), **FEW["map"], newton=5)
    assert part.interrupted and np.array_equal(part.mode, whole.mode)


@pytest.mark.parametrize(
    ("more", "said"), [({"newton": -1}, "must not be negative"), ({"newton": 1, "box": True}, "box")]
)
def test_newton_s_mistakes(more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        run("map", case("known label"), **FEW["map"], **more)


# -- seeds and interruptions ---------------------------------------------------------------------------------------


def fields(posterior: Posterior) -> dict[str, np.ndarray]:
    return {"x": posterior.x, "y": posterior.y, "mode": posterior.mode, **posterior.stats, **posterior.curves}


@pytest.mark.slow
@each_inference
def test_one_seed_gives_one_result_and_another_seed_another(name: str) -> None:
    """Where the label is open: it is drawn, too, beside all that is drawn where it is known."""
    first, again, other = (fields(run(name, case("open label"), seed=s, **FEW[name])) for s in (3, 3, 4))
    assert set(first) == set(again)
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert not np.array_equal(first["x"], other["x"])


def interrupting(label: str, after: int) -> ProgressBar:
    """Ctrl-C in the work of that label, after so many steps."""

    def progress(said: str, total: int) -> Iterator[int]:
        for k in range(total):
            if said.startswith(label) and k == after:
                raise KeyboardInterrupt
            yield k

    return progress


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "label", "kept"),
    [("hmc", "sampling", (3, 3)), ("nuts", "NUTS chain 2", (1, 4)), ("langevin", "sampling", (3, 3))],
)
def test_ctrl_c_keeps_the_draws_so_far_bitwise_and_says_so(name: str, label: str, kept: tuple[int, int]) -> None:
    whole = run(name, case("known label"), **FEW[name])
    part = run(name, case("known label"), interrupting(label, 3), **FEW[name])
    assert part.x.shape[:2] == kept
    assert np.array_equal(part.x, whole.x[: kept[0], : kept[1]])
    assert any("interrupted" in d for d in part.doubts)
    assert not any("interrupted" in d for d in whole.doubts)


@pytest.mark.parametrize(("name", "label"), [("svi", "SVI"), ("map", "MAP")])
def test_ctrl_c_keeps_the_optimisation_so_far_and_says_so(name: str, label: str) -> None:
    part = run(name, case("known label"), interrupting(label, 5), **FEW[name])
    assert any("interrupted after 5 of" in d for d in part.doubts)
    assert not part.converged


def test_a_study_scores_nothing_half_done() -> None:
    finished = run("map", case("known label"), **FEW["map"])
    assert finished.whole() is finished
    with pytest.raises(KeyboardInterrupt):
        run("map", case("known label"), interrupting("MAP", 5), **FEW["map"]).whole()


@each_inference
def test_ctrl_c_before_anything_can_be_kept_is_not_swallowed(name: str) -> None:
    label = {"map": "MAP", "svi": "SVI", "laplace": "curvature", "nuts": "NUTS"}.get(name, "sampling")
    with pytest.raises(KeyboardInterrupt):
        run(name, case("known label"), interrupting(label, 0), **FEW[name])


@pytest.mark.parametrize("name", ["laplace", "svi", "hmc", "nuts", "langevin"])
def test_ctrl_c_in_the_search_for_the_map_is_not_swallowed(name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(name, case("known label"), interrupting("MAP", 3), **FEW[name])


@each_inference
def test_its_settings_are_keyword_arguments_with_defaults_and_a_line_of_help(name: str) -> None:
    function = programs.load("inference", name)
    positional = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert positional == ["model", "observed", "client"]
    assert {"seed", "progress"} <= set(inspect.signature(function).parameters)
    assert all(s.help for s in programs.settings(function))
