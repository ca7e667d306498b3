"""What is left to climb, against the dense Newton decrement and on densities whose maximum is known."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from conftest import observe, tiny
from torch import Tensor

from pplleak import programs
from pplleak.density import Density, build, whitening
from pplleak.density.box import Box, boxed
from pplleak.density.decrement import Decrement, decrement, polish, settled
from pplleak.density.search import maximise
from pplleak.models import dlg, linear_gaussian, logistic
from pplleak.posterior import Posterior

EXACT = {"products": 500, "tolerance": 1e-12}


def spread(n: int, worst: float = 1e4) -> tuple[Tensor, Tensor]:
    """A precision with eigenvalues from 1 to `worst`, and the maximum of its Gaussian, at −½ m² nats."""
    generator = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    precision = q @ torch.logspace(0, math.log10(worst), n, dtype=torch.float64).diag() @ q.mT
    return (precision + precision.mT) / 2, torch.randn(n, dtype=torch.float64, generator=generator)


def quadratic(precision: Tensor, centre: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: -0.5 * ((z - centre) @ precision * (z - centre)).sum(-1)


def test_on_a_quadratic_it_is_what_is_left_and_the_step_ends_at_the_maximum() -> None:
    precision, centre = spread(12)
    log_density = quadratic(precision, centre)
    for z in (torch.zeros(12, dtype=torch.float64), centre + 1e-3, 5 * centre):
        truth = -float(log_density(z[None]))
        found = decrement(log_density, z, **EXACT)
        assert found.nats == pytest.approx(truth, rel=1e-6) and not found.at_least
        torch.testing.assert_close(z + found.step, centre, rtol=1e-4, atol=1e-4)
        assert found.gain == pytest.approx(truth, rel=1e-3)
        # the wrong twin: steepest descent's decrement, of the other metric
        slope = torch.func.grad(lambda w: log_density(w[None])[0])(z)
        assert abs(float(slope @ slope / 2) - truth) > 0.1 * truth
    assert decrement(log_density, centre).nats == 0


def test_what_conjugate_gradients_leave_out_is_said_and_small() -> None:
    precision, centre = spread(200, 1e6)
    log_density = quadratic(precision, centre)
    z = torch.zeros(200, dtype=torch.float64)
    truth = -float(log_density(z[None]))
    whole, cut = decrement(log_density, z, products=600), decrement(log_density, z, products=5)
    assert not whole.at_least and whole.nats == pytest.approx(truth, rel=0.05)
    assert cut.at_least and 0 < cut.nats < truth and "at least" in cut.doubt and cut.products == 5


def densities() -> dict[str, Density]:
    client = tiny("linear", classes=2, zero=False)
    smooth = tiny("linear", (1, 4, 4), classes=3)
    return {
        "logistic": build(functools.partial(logistic.model, sigma=0.1), client, observe(client, 0.1)),
        "linear_gaussian": build(functools.partial(linear_gaussian.model, sigma=0.1), smooth, observe(smooth, 0.1)),
    }


@pytest.mark.parametrize("name", ["logistic", "linear_gaussian"])
def test_it_is_the_dense_newton_decrement(name: str) -> None:
    density = densities()[name]
    log_density = functools.partial(density, jacobian=False)
    torch.manual_seed(0)
    mode, _ = polish(log_density, density.sample_prior(1)[0], 20)
    for away in density.sample_prior(3):
        z = mode + 0.2 * (away - mode)  # further off, the density of `logistic` is no quadratic
        h = whitening.hessian(density, z, jacobian=False)
        _, (slope,) = density.value_and_grad(z[None], jacobian=False)
        dense = float(slope @ torch.linalg.solve(h, slope)) / 2
        diagonal = float((slope**2 / h.diagonal()).sum()) / 2  # a wrong twin: no mixed derivatives
        assert bool((torch.linalg.eigvalsh(h) > 0).all())
        found = decrement(log_density, z, **EXACT)
        assert found.nats == pytest.approx(dense, rel=1e-6) and not found.at_least
        assert diagonal != pytest.approx(dense, rel=1e-4)
    if name == "linear_gaussian":  # exactly quadratic: its maximum is known
        z, left = polish(log_density, z, 1, **EXACT)
        assert left.nats < 1e-9


def test_bounds_that_the_slope_pushes_against_do_not_count() -> None:
    centre = torch.tensor([0.5, 3.0, -2.0], dtype=torch.float64)
    log_density = quadratic(torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)), centre)
    box = Box(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    corner = torch.tensor([0.25, 1.0, 0.0], dtype=torch.float64)
    assert decrement(log_density, corner, box=box, **EXACT).nats == pytest.approx(0.125)
    assert decrement(log_density, corner, **EXACT).nats == pytest.approx(0.125 + 2 + 2)
    z, left = polish(log_density, corner, 5, box=box)
    torch.testing.assert_close(z, torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64))
    assert left.nats < 1e-9


def test_where_the_density_curves_up_it_is_a_bound_that_was_really_found() -> None:
    def hills(z: Tensor) -> Tensor:  # maxima of height 0 at ±3, a saddle of height −81/4 between them
        return -((z[:, 0] ** 2 - 9) ** 2) / 4 - z[:, 1] ** 2

    for z in (torch.tensor([0.1, 0.0]), torch.tensor([0.01, 1.0])):
        left = -float(hills(z[None]))
        found = decrement(hills, z.double())
        assert found.at_least and 5 < found.nats <= left and found.gain == pytest.approx(found.nats)
    end, found = polish(hills, torch.tensor([0.1, 0.5], dtype=torch.float64), 20)
    assert found.nats < 0.01 and float(hills(end[None])) > -0.01


def test_kinks_do_not_promise_what_is_not_there() -> None:
    def pointed(z: Tensor) -> Tensor:
        return -(50 * z.abs() + z**2 / 2).sum(-1)

    at_the_top = decrement(pointed, torch.full((3,), 1e-9, dtype=torch.float64))
    assert at_the_top.at_least and at_the_top.nats < 1e-6  # the slope of a quadratic would promise 3750 nats


def test_a_slope_that_is_no_number_is_a_doubt() -> None:
    found = decrement(lambda z: z.sqrt().sum(-1), -torch.ones(2, dtype=torch.float64))
    assert found.number is None and "not a number" in found.doubt
    linear = decrement(lambda z: z.sum(-1), torch.ones(2, dtype=torch.float64))
    assert linear.at_least and linear.doubt


class Once(torch.autograd.Function):
    """z² whose derivative has no derivative."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


def test_where_there_is_no_second_derivative_a_bound_remains() -> None:
    found = decrement(lambda z: -Once.apply(z).sum(-1), torch.full((3,), 2.0, dtype=torch.float64))
    assert found.at_least and 1 < found.nats <= 12 and found.doubt


# -- in the searches ---------------------------------------------------------------------------------------------------


def attack(name: str, sigma: float = 0.05, **settings: object) -> Posterior:
    client = tiny("linear", (1, 4, 4), classes=2, zero=False)
    model = functools.partial(logistic.model, sigma=sigma)
    return programs.load("inference", name)(model, observe(client, sigma), client, **settings)


@pytest.mark.slow
def test_a_short_climb_is_not_converged_and_a_whole_one_is() -> None:
    short, whole = attack("map", steps=5, starts=1), attack("map", steps=400, starts=2)
    assert not short.converged and "nats left to climb" in short.doubts[0]
    assert short.summary["nats_left"] > 1 > 0.01 > whole.summary["nats_left"]
    assert whole.converged
    # what it says is what a longer climb gains
    gained = float(whole.stats["lp"].max() - short.stats["lp"].max())
    assert 0.3 * gained < short.summary["nats_left"] < 3 * gained


def test_five_steps_of_the_default_attack_are_no_result(tmp_path: Path) -> None:
    few = ["--inference", "map", "--inference.steps", "5", "--inference.starts", "1", "--out", str(tmp_path)]
    run(["attack", *few])
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["converged"] is False and said["nats_left"] > 10
    assert "nats left to climb" in said["doubts"][0]


@pytest.mark.slow
def test_the_polish_takes_a_slow_climb_to_its_end_and_leaves_a_good_one_alone() -> None:
    slow = {"steps": 100, "starts": 2, "lr": 0.002}
    rough, polished = attack("map", **slow, polish=0), attack("map", **slow)
    assert rough.doubts and polished.stats["lp"].max() > rough.stats["lp"].max() + 1
    assert polished.summary["nats_left"] < rough.summary["nats_left"] / 5
    good = {"steps": 400, "starts": 2}
    left, right = attack("map", **good, polish=0), attack("map", **good)
    assert float(abs(left.mode - right.mode).max()) == 0


@pytest.mark.slow
def test_a_climb_without_a_schedule_ends_at_its_maximum() -> None:
    found = attack("map", steps=4000, starts=2, optimizer="lbfgs")
    assert found.summary["nats_left"] < 0.01 and len(found.curves["log_density"]) < 1000
    scheduled = attack("map", steps=320, starts=2)
    assert len(scheduled.curves["log_density"]) == 321


@pytest.mark.parametrize("name, few", [
    ("laplace", {"chains": 1, "draws": 8}),
    ("svi", {"chains": 1, "draws": 8, "iterations": 2}),
    ("hmc", {"chains": 2, "draws": 4, "warmup": 4}),
    ("smc", {"islands": 2, "particles": 16, "moves": 1, "refresh": 1}),
    ("ball", {"starts": 2}),
])  # fmt: skip
def test_every_search_reports_what_it_left(name: str, few: dict[str, int]) -> None:
    found = attack(name, sigma=0.3, steps=30, **few)
    assert 0 <= found.summary["nats_left"] < 1e3


def test_a_located_mode_is_polished_only_where_it_is_far_below() -> None:
    density = densities()["linear_gaussian"]
    log_density = functools.partial(density, jacobian=False)
    torch.manual_seed(0)
    far = density.sample_prior(1)[0]
    z, left = settled(log_density, far)
    assert left.nats < 0.01 and isinstance(left, Decrement)
    again, _ = settled(log_density, z)
    assert again is z
    near = z + 0.01
    kept, left = settled(log_density, near)
    assert kept is near and left.nats <= 1


@pytest.mark.slow
def test_what_the_ball_left_is_judged_on_offsets_of_its_own() -> None:
    short = attack("ball", delta=0.1, steps=3, starts=1)
    whole = attack("ball", delta=0.1, steps=300, starts=2)
    assert short.summary["nats_left"] > 1 > whole.summary["nats_left"]
    assert any("nats left to climb" in d for d in short.doubts) and not any("left to" in d for d in whole.doubts)


def test_in_a_box_a_climb_that_ended_has_nothing_left() -> None:
    client = tiny("mlp", (1, 3, 3))
    density = build(functools.partial(dlg.model, sigma=0.01), client, observe(client, 0.01))
    direct, box = boxed(density)
    torch.manual_seed(0)
    found = maximise(direct, starts=2, steps=200, optimizer="lbfgs", box=box)
    left = decrement(functools.partial(direct, jacobian=False), found.z[0], box=box)
    begun = decrement(functools.partial(direct, jacobian=False), direct.sample_prior(1)[0], box=box)
    assert left.nats < 0.01 < 1 < begun.nats
