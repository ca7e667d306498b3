"""Measures of leakage against the Jacobian written out, and against what a matching attack really does."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import batch_of, own, tiny
from torch import Tensor, nn

from pplleak import channels
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.studies.bits import measures
from pplleak.studies.bits.layers import ALL
from pplleak.studies.risk import bounds

SIGMA = 0.3


def dense(client: Client, x: Tensor, y: Tensor) -> Tensor:
    """J, (D, n), one entry after the other by plain autograd."""
    found = torch.autograd.functional.jacobian(lambda x: client.materialised(x, y).materialise(), x)
    return found.reshape(client.update_size, -1)


def deviation(client: Client, size: float = 1.0) -> Tensor:
    return size * torch.randn(client.update_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2])
def test_the_influence_is_the_least_squares_step_of_the_dense_jacobian(size: int) -> None:
    client = tiny()
    x, y = batch_of(client, size=size)
    j, d = dense(client, x, y), deviation(client)
    step = torch.linalg.lstsq(j, d[:, None]).solution
    assert measures.influence(client, x, y, d) == pytest.approx(float(step.norm()), rel=1e-6)
    largest = float(torch.linalg.eigvalsh(j.mT @ j).max())
    bound = measures.influence_bound(client, x, y, d, iterations=60)
    assert bound == pytest.approx(float((j.mT @ d).norm()) / largest, rel=1e-6)
    assert bound < measures.influence(client, x, y, d)
    steepest = float((torch.linalg.svdvals(j))[0])
    lipschitz = measures.lipschitz_bound(client, x, y, d, iterations=60)
    assert lipschitz == pytest.approx(float(d.norm()) / steepest, rel=1e-6)
    assert bound < lipschitz != pytest.approx(float(d.norm()) / steepest**2, rel=1e-2)
    twin = float(torch.linalg.lstsq(j, d.flip(0)[:, None]).solution.norm())
    assert twin != pytest.approx(float(step.norm()), rel=1e-2)


def test_it_is_how_far_a_matching_attack_ends_from_the_truth() -> None:
    client = tiny()
    x, y = batch_of(client)
    for size, near in ((1e-4, True), (0.3, False)):  # of a large deviation the first order is not all
        g = client.update(x, y).materialise() + deviation(client, size)
        at = x.clone().requires_grad_()
        search = torch.optim.LBFGS([at], max_iter=40, tolerance_grad=1e-14, tolerance_change=1e-16,
                                   line_search_fn="strong_wolfe")  # fmt: skip

        def loss(g: Tensor = g, at: Tensor = at, search: torch.optim.LBFGS = search) -> Tensor:
            search.zero_grad()
            value = client.update(at, y).sqdist(g)
            value.backward()
            return value

        search.step(loss)
        told = measures.influence(client, x, y, g - client.update(x, y).materialise())
        assert (float((at - x).detach().norm()) == pytest.approx(told, rel=0.01)) is near


def test_an_image_that_has_the_gradient_lies_beyond_the_lipschitz_bound() -> None:
    """Of a deviation that an image can follow, and near enough for a first order."""
    client = tiny()
    x, y = batch_of(client)
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for size in (1e-4, 1e-3):
        other = x + size * along / along.norm()
        d = (client.update(other, y).materialise() - client.update(x, y).materialise()).detach()
        told = measures.lipschitz_bound(client, x, y, d)
        assert told <= size * 1.01 and told > 0.05 * size
        assert measures.lipschitz_bound(client, x, y, 30 * d) > size  # a bound that could be crossed


def test_its_mean_square_over_noise_is_the_cramer_rao_bound() -> None:
    client = tiny()
    x, y = batch_of(client)
    j = dense(client, x, y)
    drawn = SIGMA * torch.randn(4000, client.update_size, generator=torch.Generator().manual_seed(2)).double()
    squares = torch.linalg.lstsq(j, drawn.mT).solution.square().sum(0)
    bound = float(torch.linalg.inv(bounds.fisher_of(client, lambda u: channels.Gaussian(u, SIGMA), x, y)).trace())
    error = float(squares.std()) / math.sqrt(len(squares))
    assert abs(float(squares.mean()) - bound) < 5 * error < abs(float(squares.mean()) - 2 * bound)
    one = measures.influence(client, x, y, drawn[0])
    assert one**2 == pytest.approx(float(squares[0]), rel=1e-6)


def test_of_layers_the_squares_add_up() -> None:
    client = tiny()
    x, y = batch_of(client, size=2)
    found = measures.by_layer(client, SIGMA, x, y)
    j = dense(client, x, y)
    n = j.shape[1]
    assert found[ALL] == pytest.approx(float(j.square().sum().sqrt()) / SIGMA / math.sqrt(n))
    assert found[ALL] ** 2 == pytest.approx(sum(v**2 for k, v in found.items() if k != ALL))
    first = torch.cat([j[client.slices[name]] for name in ("1.weight", "1.bias")])
    assert found["1 (4×4)"] == pytest.approx(float(first.square().sum().sqrt()) / SIGMA / math.sqrt(n))
    last = torch.cat([j[client.slices[name]] for name in ("3.weight", "3.bias")])
    assert found["1 (4×4)"] != pytest.approx(float(last.square().sum().sqrt()) / SIGMA / math.sqrt(n), rel=1e-2)


def test_no_noise_of_the_same_power_leaks_less_than_the_least_leaking() -> None:
    client = tiny()
    x, y = batch_of(client)
    sizes = torch.tensor([shape.numel() for shape in client.layers.values()], dtype=torch.float64)

    def leaked(widths: Tensor) -> float:
        found = bounds.fisher_of(
            client, lambda u: channels.Weighted(u, channels.by_layer(client, widths.tolist())), x, y
        )
        return float(found.trace())

    found = torch.tensor(measures.least_leaking(client, SIGMA, x, y), dtype=torch.float64)
    assert float(sizes @ found.square()) == pytest.approx(float(sizes.sum()) * SIGMA**2)
    least, generator = leaked(found), torch.Generator().manual_seed(0)
    for other in (torch.full_like(found, SIGMA), *(found * torch.exp(s * torch.randn(
            4, generator=generator, dtype=torch.float64)) for s in (0.05, 0.05, 0.3, 1.0))):  # fmt: skip
        other = other * (sizes.sum() * SIGMA**2 / (sizes @ other.square())).sqrt()
        assert leaked(other) > least
    steeper = found.square() / found.square().mean().sqrt()  # σ² ∝ A / D, without the root
    steeper = steeper * (sizes.sum() * SIGMA**2 / (sizes @ steeper.square())).sqrt()
    assert leaked(steeper) > 1.01 * least


def test_the_linearised_error_is_that_of_a_linear_gaussian_model() -> None:
    generator = torch.Generator().manual_seed(0)
    j, root = (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (6, 3))
    k = root @ root.mT + torch.eye(3, dtype=torch.float64)
    gain = k @ j.mT @ torch.linalg.inv(j @ k @ j.mT + SIGMA**2 * torch.eye(6, dtype=torch.float64))
    error = float((k - gain @ j @ k).trace())  # Kalman's form
    assert measures.linearised(j.mT @ j / SIGMA**2, k) == pytest.approx(error)
    assert measures.linearised(0 * k, k) == pytest.approx(float(k.trace()))
    assert measures.linearised(j.mT @ j / SIGMA, k) != pytest.approx(error, rel=0.05)


def test_the_signal_is_counted_in_units_of_the_noise() -> None:
    client = tiny()
    x, y = batch_of(client)
    u = client.materialised(x, y).materialise()
    found = measures.signal_to_noise(client, lambda u: channels.Gaussian(u, SIGMA), x, y)
    assert found == pytest.approx(float(u.square().mean().sqrt()) / SIGMA)


def test_what_cannot_be_measured_is_refused_or_infinite() -> None:
    client = tiny(activation="relu")
    x, y = batch_of(client)
    for measure in (measures.influence, measures.influence_bound, measures.lipschitz_bound):
        with pytest.raises(BadInput, match=r"kinks \(relu\)"):
            measure(client, x, y, deviation(client))
    with pytest.raises(BadInput, match="the deviation has shape"):
        measures.influence(tiny(), x, y, torch.zeros(2))
    pooled = own(lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(1, 3)), (1, 2, 2))
    x, y = batch_of(pooled)  # three directions of four reach no weight
    assert measures.influence(pooled, x, y, deviation(pooled)) == math.inf
    assert measures.influence_bound(pooled, x, y, deviation(pooled)) < math.inf
