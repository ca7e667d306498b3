"""SME: the gradient between the weights before and after, and its way along what was shared."""

from __future__ import annotations

import torch
from scenes import from_data

from pplleak.client.training import LocalTraining
from pplleak.models import sme


def test_at_both_ends_it_is_the_gradient_there_and_in_between_it_is_differentiable_in_a() -> None:
    one = LocalTraining(0.1, steps=1)
    target = from_data(batch_size=3, settings={"widths": (5,)}, local=one, sigma=1e-12, dtype="float64")
    client, x, y = target.client, target.truth, target.labels
    assert x is not None and y is not None and client.local is not None
    movement = target.g / client.local.factor

    def at(a: torch.Tensor) -> torch.Tensor:
        return sme.between(client, x, y, a, movement).materialise()

    first = at(torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(0.1 * first, target.g.expand(2, -1), atol=1e-10)  # one step: the movement is -lr times it
    two = from_data(
        batch_size=3, settings={"widths": (5,)}, local=LocalTraining(0.1, steps=2), sigma=1e-12, dtype="float64"
    )
    second = two.g - target.g  # of the second step, which begins where the first has ended
    assert torch.allclose(0.1 * at(torch.ones(1, dtype=torch.float64))[0], second, atol=1e-10)
    assert not torch.allclose(0.1 * first[0], second, atol=1e-4)
    a = torch.full((1,), 0.4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(at(a).sum(), a)
    step = torch.tensor([1e-5], dtype=torch.float64)
    numeric = (at(a.detach() + step).sum() - at(a.detach() - step).sum()) / 2e-5
    assert torch.allclose(slope, numeric, rtol=1e-5)
