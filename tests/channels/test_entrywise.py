"""Sums over entries that keep their slope: number, slope and curvature are plain autograd's, for every channel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pplleak import channels
from pplleak.channels import _entrywise as entrywise
from pplleak.client.update import DenseUpdate

SIGMA, SIZE, CHAINS = 0.3, 101, 3

CHANNELS: dict[str, Callable[[DenseUpdate], channels.Channel]] = {
    "laplace": lambda u: channels.Laplace(u, SIGMA),
    "elastic": lambda u: channels.Elastic(u, SIGMA),
    "masked": lambda u: channels.Masked(u, SIGMA, noise="laplace"),
    "pruned": lambda u: channels.Pruned(u, SIGMA),
    "pruned, laplace": lambda u: channels.Pruned(u, SIGMA, noise="laplace"),
    "noise first": lambda u: channels.Pruned(u, SIGMA, noise="laplace", order="noise_first"),
    "quantised": lambda u: channels.Quantised(u, SIGMA),
    "sign": lambda u: channels.Sign(u, SIGMA),
    "topk": lambda u: channels.TopK(u, SIGMA),
}


def evaluated(make: Callable[[DenseUpdate], channels.Channel], u: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(g | u) of each chain, its slope, and the slope's own along a direction."""
    u = u.clone().requires_grad_()
    value = make(DenseUpdate(u[:, None])).log_prob(g)
    (slope,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    weights = torch.linspace(-1, 1, u.numel(), dtype=u.dtype).view_as(u)
    if not slope.requires_grad:  # a density of straight pieces
        return value.detach(), slope.detach(), torch.zeros_like(u)
    (curve,) = torch.autograd.grad((slope * weights).sum(), u, allow_unused=True)
    return value.detach(), slope.detach(), torch.zeros_like(u) if curve is None else curve


@pytest.mark.parametrize("name", CHANNELS)
def test_density_slope_and_curvature_are_those_of_plain_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    u = torch.randn(CHAINS, SIZE, dtype=torch.float64)
    g = CHANNELS[name](DenseUpdate(u[:1])).sample()
    found = evaluated(CHANNELS[name], u, g)
    taken: list[str] = []
    monkeypatch.setattr(entrywise, "total", lambda *given: taken.append(name) or entrywise._sum(*given))
    for one, expected in zip(found, evaluated(CHANNELS[name], u, g), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-12)
    assert taken  # the channel does take the sum


def test_an_inferred_sigma_keeps_its_slope() -> None:
    torch.manual_seed(0)
    u = torch.randn(2, SIZE, dtype=torch.float64, requires_grad=True)
    g = torch.randn(SIZE, dtype=torch.float64)
    for noise in ("gaussian", "laplace"):
        sigma = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(
            channels.Pruned(DenseUpdate(u[:, None]), sigma, noise=noise).log_prob(g).sum(), sigma
        )
        with torch.no_grad():
            up, down = (
                channels.Pruned(DenseUpdate(u[:, None]), sigma + h, noise=noise).log_prob(g) for h in (1e-5, -1e-5)
            )
        torch.testing.assert_close(slope, (up - down) / 2e-5, rtol=1e-6, atol=1e-6)


def test_single_precision_terms_lose_nothing_that_the_update_still_holds() -> None:
    torch.manual_seed(0)
    u, g = torch.randn(2, 400_000), torch.randn(400_000)
    for sigma in (1.0, 1e-3):
        found = channels.Laplace(DenseUpdate(u[:, None] * sigma), sigma).log_prob(g * sigma)
        exact = channels.Laplace(DenseUpdate((u * sigma).double()[:, None]), sigma).log_prob((g * sigma).double())
        assert (found - exact).abs().max() < 1e-3
