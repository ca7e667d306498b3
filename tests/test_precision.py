"""The energy ‖g − u‖²/2σ² near the truth, where it is the small difference of large numbers, and its gradient.

Against the materialised reference in float64, for every layer type, at σ/‖g‖ down to 1e-4.
"""

from __future__ import annotations

import pytest
import torch
from conftest import batch_of
from layers import CASES, client_of, reference
from torch import Tensor

from pplleak.clients import Client

RATIOS = (1e-1, 1e-2, 1e-3, 1e-4)  # σ/‖g‖
EXACT = 1e-6  # relative, of a float64 client
ULPS = 60.0  # nats of error that a float32 client may make at σ/‖g‖ = 1, in units of float32's epsilon
each_case = pytest.mark.parametrize("case", list(CASES))
each_ratio = pytest.mark.parametrize("ratio", RATIOS, ids=lambda r: f"{r:.0e}")
REDUCED = [c for c in ("mlp", "tokens", "conv as wide as the image", "vit")]  # sums of squares by the Gram form


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


@each_ratio
@each_case
@pytest.mark.parametrize("batch", [1, 3])
def test_lazy_is_materialised_to_a_millionth(case: str, ratio: float, batch: int) -> None:
    client = client_of(case)
    at = observed(client, ratio, batch)
    assert max(errors(lazy(client, *at), exact(client, *at))) <= EXACT


@pytest.mark.parametrize("case", REDUCED)
def test_sums_in_float32_would_not_be(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(case)
    at = observed(client, 1e-4, 1)
    expected = exact(client, *at)
    monkeypatch.setattr(Tensor, "double", Tensor.float)
    assert max(errors(lazy(client, *at), expected)) > EXACT
