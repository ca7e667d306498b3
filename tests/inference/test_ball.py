"""The δ-ball adversary against quadrature, against the mean of a quadratic, and against MAP in its limit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import LIMIT, observe, tiny
from torch import Tensor

from pplleak import channels, density, programs
from pplleak.client import Client
from pplleak.density.chart import chart
from pplleak.errors import BadInput
from pplleak.inference import ball, map
from pplleak.models import dlg, logistic

SHAPE = (1, 2, 2)


def gaussian_case(size: int = 1) -> tuple[Callable[..., Any], Client, Any]:
    client = tiny("linear", SHAPE, classes=2, zero=False)
    return functools.partial(logistic.model, sigma=0.1), client, observe(client, 0.1, size=size)


def of_sites(kind: str, client: Client, batch_size: int = 1) -> Tensor:
    """A model with 4 pixels, whose x comes from its latents in several ways."""
    n = 4
    one = torch.ones(batch_size, n, dtype=client.dtype)
    z = pyro.sample("z", dist.Normal(0 * one, one).to_event(2))
    mix = torch.eye(n, dtype=client.dtype) + 0.3 * torch.arange(n * n, dtype=client.dtype).reshape(n, n).sin()
    a = 0.5 + 0.3 * z @ mix.mT
    if kind == "more latents":
        a = a + 0.1 * pyro.sample("e", dist.Normal(0 * one, one).to_event(2))
    x = {"affine": a, "logistic": (4 * a - 2).sigmoid(), "bent": a + 0.1 * z**3}.get(kind, a)
    if kind == "flat":
        x = 0 * a + a.mean(-1, keepdim=True)
    x = pyro.deterministic("x", x.unflatten(-1, SHAPE), event_dim=4)
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), 0.3))


# -- the ball --------------------------------------------------------------------------------------------------------


def second_moment(e: Tensor, delta: float) -> float:
    """By how many standard errors E[e²] of a coordinate misses that of the uniform ball, δ²/(n + 2)."""
    square = e[: len(e) // 2].square()  # the second half mirrors the first
    error = square.std(0) / len(square) ** 0.5
    return float(((square.mean(0) - delta**2 / (e.shape[1] + 2)) / error).abs().max())


def test_offsets_fill_the_ball_evenly_and_in_pairs() -> None:
    e = ball.offsets(40_000, 1, 5, 0.7)
    assert torch.equal(e[:20_000], -e[20_000:])
    assert float(e.norm(dim=1).max()) <= 0.7
    assert second_moment(e, 0.7) < LIMIT
    assert second_moment(0.7 * e / e.norm(dim=1, keepdim=True), 0.7) > LIMIT, "the sphere passes for the ball"
    assert second_moment(e * (e.norm(dim=1, keepdim=True) / 0.7) ** 4, 0.7) > LIMIT, "a ball denser inside passes"


def test_every_example_of_a_batch_has_a_ball_of_its_own() -> None:
    e = ball.offsets(2000, 3, 4, 0.5).unflatten(1, (3, 4)).norm(dim=2)
    assert float(e.max()) <= 0.5 and float(e.square().sum(1).sqrt().median()) > 0.5


# -- the chart -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["affine", "logistic"])
def test_the_chart_is_the_models_own_map_and_its_jacobian(kind: str) -> None:
    client = tiny(shape=SHAPE)
    d = density.build(functools.partial(of_sites, kind), client, observe(client, 0.3, size=2))
    at = chart(d)
    assert at.boxed is (kind == "logistic")
    z = torch.randn(3, d.dim, dtype=torch.float64)
    x = d.images(z)[0].flatten(1)
    assert torch.allclose(at.image(z), x, atol=1e-9) and torch.allclose(at.latents(x), z, atol=1e-6)
    slow = torch.stack([torch.autograd.functional.jacobian(at.image, row).slogdet()[1] for row in z])
    assert torch.allclose(slow.diff(), at.log_det(z).diff(), atol=1e-9)


def test_an_offset_that_leaves_the_pixel_box_is_folded_back_and_stays_in_the_ball() -> None:
    client = tiny(shape=SHAPE)
    at = chart(density.build(dlg.model, client, observe(client, 0.3)))
    x0 = torch.rand(500, 4, dtype=torch.float64)
    e = ball.offsets(500, 1, 4, 0.9)
    x = at.image(at.latents(x0 + e))
    inside = ((x0 + e >= 0) & (x0 + e <= 1)).all(1)
    assert 0.02 < float(inside.double().mean()) < 0.9, "the test needs offsets on both sides"
    assert torch.allclose(x[inside], (x0 + e)[inside])
    assert float((x - x0).norm(dim=1).max()) <= 0.9 + 1e-9 and float(x.min()) >= 0 and float(x.max()) <= 1


@pytest.mark.parametrize(
    ("kind", "said"), [("more latents", "8 latents for 4 pixels"), ("bent", "is neither"), ("flat", "is neither")]
)
def test_a_model_whose_x_is_no_bijection_of_its_latents_is_refused(kind: str, said: str) -> None:
    client = tiny(shape=SHAPE)
    with pytest.raises(BadInput, match=said):
        ball.run(functools.partial(of_sites, kind), observe(client, 0.3), client, steps=2)


@pytest.mark.parametrize("name", ["optimal", "gmrf", "ppca", "mixture", "dlg", "tv", "logit_normal"])
def test_the_models_of_the_folder_have_the_charts_that_the_docstring_says(name: str) -> None:
    client = tiny("linear", (1, 8, 8), classes=10, dtype="float32")
    model = name if name in programs.names("models") else f"optimal:prior={name}"
    d = density.build(programs.load("models", model), client, observe(client, 0.1))
    assert chart(d).boxed is (name in ("dlg", "tv", "logit_normal"))


# -- the objective ---------------------------------------------------------------------------------------------------


def test_the_objective_of_a_quadratic_is_its_mean_over_the_ball() -> None:
    """E log p(x₀ + e) = log p(x₀) + ½ tr(∇² log p) δ²/(n + 2), exactly so for a Gaussian posterior."""
    client = tiny("linear", SHAPE, classes=3)  # zero weights: exactly Gaussian
    d = density.build(functools.partial(logistic.model, sigma=0.3), client, observe(client, 0.3))
    at, delta = chart(d), 0.8
    z = d.sample_prior(2)
    values = ball.around(d, at, z, ball.offsets(4000, 1, 4, delta)).unflatten(0, (2, -1)).mean(0)
    trace = torch.autograd.functional.hessian(lambda v: d(v[None]).sum(), z[0]).trace()
    error = values.std(0) / len(values) ** 0.5

    def misses(moment: float) -> float:
        return float(((values.mean(0) - d(z) - 0.5 * trace * moment) / error).abs().max())

    assert misses(delta**2 / (4 + 2)) < LIMIT
    assert misses(delta**2 / 4) > LIMIT, "the check does not tell the ball from its sphere"
    assert misses(0.0) > LIMIT, "the check does not tell the ball from its centre"


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_ball_that_shrinks_to_a_point_is_map(size: int) -> None:
    model, client, observed = gaussian_case(size)
    point = map.run(model, observed, client, starts=2, steps=200).mode
    small = ball.run(model, observed, client, delta=1e-4, samples=2, starts=2, steps=200)
    assert np.abs(small.mode - point).max() < 1e-3
    large = ball.run(model, observed, client, delta=1.0, starts=2, steps=60)
    assert np.abs(large.mode - point).max() > 0.01, "the ball makes no difference here: the test tests nothing"
    assert small.kind == "point" and small.x.shape[:2] == (1, 1) and np.array_equal(small.x[0, 0], small.mode)


@pytest.mark.slow
def test_a_ball_that_shrinks_to_a_point_is_map_on_the_pixel_box() -> None:
    client = tiny(shape=SHAPE)
    observed, model = observe(client, 0.05), functools.partial(dlg.model, sigma=0.05)
    point = map.run(model, observed, client, starts=4, steps=400).mode
    assert np.abs(ball.run(model, observed, client, delta=1e-4, samples=2, steps=400).mode - point).max() < 1e-2


SPIKE = {"at": 0.9, "width": 0.02, "weight": 0.2}


def spiked(client: Client, batch_size: int = 1) -> Tensor:
    """One pixel: a broad hill at 0.3, and a spike that is higher and holds little."""
    one = torch.ones((), dtype=client.dtype)
    hills = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([1 - SPIKE["weight"], SPIKE["weight"]], dtype=client.dtype)),
        dist.Normal(torch.tensor([0.3, SPIKE["at"]]) * one, torch.tensor([0.12, SPIKE["width"]]) * one),
    )
    wide = dist.Normal(0.5 * one, 0.5 * one)  # to start from; the factor puts the hills in its place
    x = pyro.sample("x", wide.expand([batch_size, 1, 1, 1]).to_event(4))
    pyro.factor("hills", (hills.log_prob(x) - wide.log_prob(x)).sum((-4, -3, -2, -1)))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), 3.0))


@pytest.mark.slow
def test_the_ball_prefers_the_broad_hill_and_finds_the_maximum_of_quadrature() -> None:
    client = tiny("linear", (1, 1, 1), classes=2, zero=False)
    observed, delta = observe(client, 3.0), 0.15
    d = density.build(spiked, client, observed)
    grid = torch.linspace(-1, 2, 3001, dtype=torch.float64)
    lp = d(grid[:, None])
    width = round(delta / 1e-3)
    means = torch.nn.functional.avg_pool1d(lp[None], 2 * width + 1, stride=1)[0]
    best = float(grid[width:-width][means.argmax()])
    assert abs(float(grid[lp.argmax()]) - SPIKE["at"]) < 0.01 < 0.3 < abs(best - SPIKE["at"])
    found = ball.run(spiked, observed, client, delta=delta, samples=64, starts=6, steps=300)
    assert abs(float(found.mode.item()) - best) < 0.02
    assert abs(float(ball.run(spiked, observed, client, delta=1e-4, starts=24, steps=300).mode.item()) - best) > 0.3


# -- what it says of itself ------------------------------------------------------------------------------------------


def test_the_same_seed_is_the_same_result_and_bad_settings_are_refused() -> None:
    model, client, observed = gaussian_case()
    few = {"starts": 2, "steps": 5}
    one, two = (ball.run(model, observed, client, seed=3, **few) for _ in range(2))
    other = ball.run(model, observed, client, seed=4, **few)
    assert np.array_equal(one.mode, two.mode) and not np.array_equal(one.mode, other.mode)
    for name, value, said in (("delta", 0.0, "delta must be"), ("samples", 3, "must be even")):
        with pytest.raises(BadInput, match=said):
            ball.run(model, observed, client, **{name: value})


@pytest.mark.slow
def test_a_climb_that_has_not_ended_says_so_and_one_that_has_does_not() -> None:
    model, client, observed = gaussian_case()
    assert ball.run(model, observed, client, delta=0.1, steps=400).converged
    short = ball.run(model, observed, client, delta=0.1, steps=20, lr=0.01)
    assert any("starts" in r or "climbing" in r for r in short.reasons)


def test_ctrl_c_keeps_the_last_iterate_and_says_so() -> None:
    model, client, observed = gaussian_case()

    def stops(label: str, total: int) -> Any:
        yield from range(7)
        raise KeyboardInterrupt

    found = ball.run(model, observed, client, progress=stops)
    assert found.interrupted and len(found.curves["objective"]) == 7
