"""The microcanonical kernel that `hmc` is measured against draws from its density; sure means make no draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LIMIT, assert_moments, benchmark, misfit
from torch import Tensor

from pplleak.density import hamiltonian

DIM = 5


@pytest.fixture(scope="module")
def it() -> Any:
    return benchmark("microcanonical")


def gumbel(w: Tensor) -> tuple[Tensor, Tensor]:
    """U and ∇U of independent Gumbel variables: skewed, of mean 0.5772 and variance π²/6."""
    return (w + torch.exp(-w)).sum(1), 1 - torch.exp(-w)


def draws(it: Any, name: str, adjust: bool, size: float) -> np.ndarray:
    torch.manual_seed(0)
    state = hamiltonian.init(gumbel, torch.randn(128, DIM, dtype=torch.float64))
    kept = []
    for t in range(90):
        steps = int(torch.randint(1, 4, ()))
        state, _ = it.step(gumbel, state, size, steps, getattr(it, name), adjust=adjust)
        if t >= 10:
            kept.append(state.w)
    return torch.stack(kept, 1).numpy()


@pytest.mark.parametrize(("splitting", "size"), [("LEAPFROG", 4.0), ("BLANES", 10.0)])
def test_its_draws_have_the_exact_moments_and_without_its_test_they_do_not(
    it: Any, splitting: str, size: float
) -> None:
    mean, sd = torch.full((DIM,), float(np.euler_gamma)), torch.full((DIM,), math.pi / math.sqrt(6))
    assert_moments(draws(it, splitting, True, size), mean, sd)
    assert misfit(draws(it, splitting, False, size), mean, sd) > LIMIT


def test_a_kick_is_the_flow_on_the_sphere(it: Any) -> None:
    """du/dt = −(I − u uᵀ) ∇U / (d − 1), by a thousand small steps; and (d − 1) log c grows by −u·∇U dt."""
    generator = torch.Generator().manual_seed(0)
    u, force = (torch.randn(3, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    u = u / u.norm(dim=1, keepdim=True)
    found, change = it.kick(u, 3 * force, 0.7)
    slow, grown = u, torch.zeros(3, dtype=torch.float64)
    for _ in range(1000):
        half = slow - 3.5e-4 * _across(slow, 3 * force)
        half = half / half.norm(dim=1, keepdim=True)
        grown = grown - 7e-4 * (half * 3 * force).sum(1)
        slow = slow - 7e-4 * _across(half, 3 * force)
        slow = slow / slow.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, slow, atol=1e-5, rtol=0)
    torch.testing.assert_close(change, grown, atol=1e-4, rtol=0)
    far, much = it.kick(u, 1e6 * force, 1.0)  # cosh would overflow
    assert bool(far.isfinite().all()) and bool(much.isfinite().all())


def _across(u: Tensor, force: Tensor) -> Tensor:
    return (force - u * (u * force).sum(1, keepdim=True)) / (DIM - 1)


def test_draws_that_only_change_their_sign_count_by_their_squares(it: Any) -> None:
    generator = np.random.default_rng(0)
    free = generator.normal(size=(4, 200, 1))
    turned = np.abs(generator.normal(size=(4, 1, 1))) * np.where(np.arange(200) % 2, -1.0, 1.0)[None, :, None]
    turned = turned + 0.05 * generator.normal(size=(4, 200, 1))
    assert it.effective(free)[0] > 500
    assert it.effective(turned)[0] < 50
