"""The stationary Gaussian against the dense matrix that it stands for, and on images for which there is none."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pplleak.errors import BadInput
from pplleak.priors.stationary import fit_stationary


def images(rows: int, columns: int) -> Tensor:
    """Images (7, 2, rows, columns) whose channels and pixels go together, and which are no torus's."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, columns, dtype=torch.float64)
    return (torch.rand(7, 2, rows, columns, dtype=torch.float64) + torch.rand(7, 1, 1, 1).double() * ramp) / 2


def dense(x: Tensor, floor: float, shifted: bool = True) -> MultivariateNormal:
    """The covariance of the images and of all their shifts around the torus, one shift after the other."""
    mean = x.mean((0, 2, 3)).repeat_interleave(x[0, 0].numel())
    centred = x - mean.reshape(x.shape[1:])
    shifts = list(itertools.product(range(x.shape[2]), range(x.shape[3]))) if shifted else [(0, 0)]
    moved = torch.cat([centred.roll(shift, (2, 3)).flatten(1) for shift in shifts])
    return MultivariateNormal(mean, moved.mT @ moved / len(moved) + floor**2 * torch.eye(len(mean)).double())


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (4, 5), (1, 1)])
def test_it_is_the_normal_of_the_images_and_all_their_shifts(rows: int, columns: int) -> None:
    x = images(rows, columns)
    prior, reference = fit_stationary(x, floor=0.05), dense(x, 0.05)
    held = torch.rand(5, *x.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(held), reference.log_prob(held.flatten(1)), rtol=1e-10, atol=1e-9)
    unit = torch.eye(x[0].numel(), dtype=torch.float64).reshape(-1, *x.shape[1:])
    factor = prior.decode(unit).flatten(1) - reference.mean
    torch.testing.assert_close(factor.mT @ factor, reference.covariance_matrix, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(prior.decode(prior.encode(held)), held, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(prior.log_prob(held), dense(x, 0.06).log_prob(held.flatten(1)), rtol=1e-3)
    if rows > 1:
        twin = dense(x, 0.05, shifted=False)  # a covariance that knows where a pixel lies
        assert not torch.allclose(prior.log_prob(held), twin.log_prob(held.flatten(1)), rtol=1e-3)


def test_a_fit_to_its_own_draws_finds_it_again() -> None:
    prior = fit_stationary(images(4, 5), floor=0.1)
    torch.manual_seed(0)
    again = fit_stationary(prior.draw(4000), floor=1e-3)
    fresh = prior.draw(2000)
    lost = (prior.log_prob(fresh) - again.log_prob(fresh)).mean()
    assert 0 < float(lost) < 0.05  # 62 numbers that were fitted to 4,000 images cost half a nat in 4,000 each
    wider = fit_stationary(1.05 * prior.draw(4000), floor=1e-3)
    assert float((prior.log_prob(fresh) - wider.log_prob(fresh)).mean()) > 0.05


def test_colour_images_of_224_by_224_take_moments_and_no_matrix_of_pixels() -> None:
    x = torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    prior = fit_stationary(x, dtype=torch.float32)
    drawn = prior.draw(2)
    assert drawn.dtype == torch.float32 and drawn.shape == (2, 3, 224, 224)
    torch.testing.assert_close(prior.decode(prior.encode(drawn)), drawn, rtol=1e-3, atol=1e-3)
    assert prior.root.numel() == 224 * 113 * 9


def test_what_has_no_grid_of_pixels_is_refused() -> None:
    with pytest.raises(BadInput, match="channels, rows, columns"):
        fit_stationary(torch.rand(5, 4))
