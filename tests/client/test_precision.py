"""The energy ‖g − u‖²/2σ² near the truth, where it is the small difference of large numbers, and its gradient.

Against the materialised reference in float64, for every layer type, at σ/‖g‖ down to 1e-4.
"""

from __future__ import annotations

import pytest
import torch
from conftest import batch_of
from layers import CASES, client_of, reference
from torch import Tensor

from pplleak.client import Client
from pplleak.client.factors import Factor

RATIOS = (1e-1, 1e-4)  # σ/‖g‖: where nothing cancels, and where eight digits do
EXACT = 1e-6  # relative, of a float64 client
EPSILON = torch.finfo(torch.float32).eps
ULPS = 30.0  # three times the largest that was measured over all cases, ratios and batches
each_case = pytest.mark.parametrize("case", list(CASES))


def energy_and_gradient(distance: Tensor, sigma: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    energy = distance.double() / (2 * sigma**2)
    return energy.detach(), torch.autograd.grad(energy.sum(), x)[0].double()


def observed(client: Client, ratio: float, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (2, batch, *input_shape): the truth and a point beside it; y; the noisy g of the truth; σ."""
    x, y = batch_of(client, (), batch)
    generator = torch.Generator().manual_seed(1)
    u = reference(client, x, y).sum(-2)
    sigma = ratio * u.norm()
    beside = x + ratio * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    g = u + sigma * torch.randn(u.shape, dtype=u.dtype, generator=generator)
    return torch.stack([x, beside]), y.expand(2, -1), g, sigma


def exact(client: Client, x: Tensor, y: Tensor, g: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    u = reference(client, x, y, graph=True).sum(-2)
    return energy_and_gradient((g - u).square().sum(-1), sigma, x)


def lazy(client: Client, x: Tensor, y: Tensor, g: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    x = x.to(client.dtype).requires_grad_()
    return energy_and_gradient(client.update(x, y).sqdist(g.to(client.dtype)), sigma, x)


def errors(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """The largest relative error of a chain's energy, and of its gradient."""
    value = (found[0] - expected[0]).abs() / expected[0]
    gradient = (found[1] - expected[1]).flatten(1).norm(dim=1) / expected[1].flatten(1).norm(dim=1)
    return float(value.max()), float(gradient.max())


@each_case
def test_lazy_is_materialised_to_a_millionth(case: str) -> None:
    client = client_of(case)
    for ratio in RATIOS:
        at = observed(client, ratio, 3)
        assert max(errors(lazy(client, *at), exact(client, *at))) <= EXACT


LAZY = [c for c in CASES if CASES[c][2] and c != "frozen weight"]  # that one shares too little to cancel


def in_gram_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancellation is at its worst where no weight gradient is formed."""
    monkeypatch.setattr(Factor, "dense", False)


@pytest.mark.parametrize("case", LAZY)
def test_it_is_so_without_any_weight_gradient_and_sums_in_float32_would_not_pass(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_gram_form(monkeypatch)
    client = client_of(case)
    for ratio in RATIOS:
        at = observed(client, ratio, 1)
        expected = exact(client, *at)
        assert max(errors(lazy(client, *at), expected)) <= EXACT
    x, y, g, sigma = at  # of the last ratio, the smallest; g anew, because what was made of it in float64 is kept
    monkeypatch.setattr(Tensor, "double", Tensor.float)
    assert max(errors(lazy(client, x, y, g.clone(), sigma), expected)) > 100 * EXACT


def rounded_truth(case: str, ratio: float) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What `lazy` takes, at the truth, in numbers that both precisions hold; and the exact energy and gradient."""
    x, y, g, sigma = observed(client_of(case), ratio, 1)
    at = x[:1].float().double(), y[:1], g.float().double(), sigma
    return at, exact(client_of(case), *at)


def float32_error(case: str, at: tuple[Tensor, ...], expected: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Of a float32 client: nats of energy, and the gradient's relative error."""
    found = lazy(client_of(case, torch.float32), *at)
    return float((found[0] - expected[0]).abs()), errors(found, expected)[1]


@each_case
def test_a_float32_client_errs_by_its_own_rounding_alone(case: str) -> None:
    """Rounding moves u by some ε‖u‖, so the energy by some ε/ratio nats: 0.01 at σ/‖g‖ = 1e-4, not ε/ratio² = 12."""
    for ratio in RATIOS:
        assert max(float32_error(case, *rounded_truth(case, ratio))) <= ULPS * EPSILON / ratio


@pytest.mark.parametrize("case", ["linear without bias", "mlp", "two convs", "conv as wide as the image"])
def test_a_float32_client_that_also_sums_in_float32_would_not_pass(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_gram_form(monkeypatch)
    truth = rounded_truth(case, 1e-4)
    assert float32_error(case, *truth)[0] <= ULPS * EPSILON / 1e-4
    monkeypatch.setattr(Tensor, "double", Tensor.float)
    assert float32_error(case, *truth)[0] > ULPS * EPSILON / 1e-4
