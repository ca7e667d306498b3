"""The epoch prior: unrolled epochs are the client's own, and what ties them together does not know their order."""

from __future__ import annotations

import functools

import pytest
import torch
from scenes import from_data

from pplleak.client.training import LocalTraining
from pplleak.density import build
from pplleak.errors import BadInput
from pplleak.models import epochs

SHAPE = (1, 8, 8)


def test_a_client_that_trains_once_on_a_copy_an_epoch_moves_as_the_client_does() -> None:
    local = LocalTraining(0.1, epochs=3, batch_size=2)
    target = from_data(batch_size=4, settings={"widths": (5,)}, local=local, sigma=1e-12, dtype="float64")
    count, once = epochs.unrolled(target.client, 4)
    x, y = target.truth, target.labels
    assert x is not None and y is not None and count == 3
    moved = once.update(torch.cat([x] * 3), torch.cat([y] * 3)).materialise()
    assert torch.allclose(moved, target.g, atol=1e-9)
    other = once.update(torch.cat([x, x.flip(0), x]), torch.cat([y] * 3)).materialise()
    assert not torch.allclose(other, target.g, atol=1e-5)
    with pytest.raises(BadInput, match="4 examples are no multiple of 3"):
        short = from_data(batch_size=4, settings={"widths": (5,)}, local=LocalTraining(0.1, epochs=3, batch_size=3))
        epochs.unrolled(short.client, 4)


def test_copies_are_pooled_and_tied_together_whatever_their_order() -> None:
    x = torch.rand(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = torch.cat([x, x.flip(0), x.roll(1, 0)]) + 1e-3
    pooled = epochs.pooled(torch.stack([turned, torch.cat([x] * 3)]), 3, 3)
    assert torch.allclose(pooled[0], x + 1e-3) and torch.allclose(pooled[1], x)
    local = LocalTraining(0.1, epochs=3, batch_size=2, shuffle=True)
    target = from_data(batch_size=4, settings={"widths": (5,)}, local=local, sigma=1e-3, dtype="float64")
    free, tied = (build(functools.partial(epochs.model, alike=a), target.client, target) for a in (1e-9, 1.0))

    def price(copies: torch.Tensor) -> float:
        z = free.unconstrain({"c": copies.clamp(1e-3, 1 - 1e-3)[None]})
        return float(free(z) - tied(z))

    assert price(turned) == pytest.approx(0.0, abs=1e-3) and price(torch.cat([x, x, 1 - x])) > 1.0
