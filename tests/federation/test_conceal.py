"""Concealing samples: what is shared, what they are made for, and what is left of them for who knows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import batch_of, own, tiny
from scenes import build_client, from_data, known
from torch import Tensor, nn

from pplleak import density, programs
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.defences import conceal
from pplleak.federation.observation import Observation
from pplleak.studies.attack.attack import believe

SIGMA = 0.2


def by_hand(client: Client, c: Tensor, x: Tensor, y: Tensor, labels: Tensor, mixing: float, divisor: int) -> Tensor:
    """∇θ (1/B) Σ_b [λ ℓ(c_b, y′_b) + (1 − λ) ℓ(c_b, y_b) + ℓ(x_b, y_b)] / divisor, by plain autograd."""
    network, loss = copy.deepcopy(client.network).requires_grad_(), nn.functional.cross_entropy
    hidden = mixing * loss(network(c), labels) + (1 - mixing) * loss(network(c), y)
    total = (hidden + loss(network(x), y)) / divisor
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(network.parameters()))])


@pytest.mark.parametrize(("mixing", "divisor"), [(0.7, 3), (1.0, 2)])
def test_it_shares_the_gradient_of_private_and_concealing_examples(
    mixing: float, divisor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = build_client("mlp", {"widths": (5,)}, (1, 8, 8), 10, dtype="float64")
    x, y = batch_of(client, size=2)
    made: dict[str, Tensor] = {}

    def spy(client: Client, x: Tensor, y: Tensor, start: Tensor, labels: Tensor, **how: Any) -> Tensor:
        made.update(c=start + 0.1, labels=labels)
        return made["c"]

    monkeypatch.setattr(conceal, "concealing", spy)
    found = conceal.share(client, x, y, mixing=mixing)
    torch.testing.assert_close(found, by_hand(client, made["c"], x, y, made["labels"], mixing, divisor))
    twin = by_hand(client, made["c"], x, y, made["labels"], mixing, 5 - divisor)
    assert not torch.allclose(found, twin, rtol=1e-2)


def test_what_conceals_keeps_the_gradients_direction_and_leaves_the_image() -> None:
    client = build_client("mlp", {"widths": (16,)}, (1, 8, 8), 10, dtype="float64")
    x, y = batch_of(client)
    start, labels = 0.7 * x.flip(-1) + 0.3 * x, (y + 1) % 10

    def terms(c: Tensor) -> tuple[float, float]:
        u, aim = (client.materialised(image, k).materialise() for image, k in ((c, labels), (x, y)))
        return float(torch.nn.functional.cosine_similarity(u, aim, dim=0)), float((c - x).norm())

    made = conceal.concealing(client, x, y, start, labels, steps=40, lr=0.1, far=150.0)
    (before, near), (after, away) = terms(start), terms(made)
    assert after > before + 0.1 and away > near
    early = conceal.concealing(client, x, y, start, labels, steps=60, lr=0.1, far=1e-3)
    assert float((early - start).abs().max()) == pytest.approx(0.1, rel=1e-4)  # far enough after one step of Adam


def test_to_who_knows_it_what_conceals_is_one_more_image() -> None:
    client = tiny()
    x, y = batch_of(client, size=2)
    g = client.update(x, y).materialise() + 0.1
    public = torch.rand(30, *client.input_shape, generator=torch.Generator().manual_seed(3))
    target = known(client, Observation(g, 2, y), public=public, sigma=SIGMA)
    built = density.build(believe(programs.load("models", "conceal"), target), client, target)
    assert [s.name for s in built.sites] == ["z", "concealing"]
    z = built.sample_prior(2)
    values, images = built.constrain(z)[0], built.images(z)[0]
    found, tables = built.terms(z)[1].reshape(9, 2), torch.zeros(2, 9, 2, dtype=torch.float64)
    for c in range(2):
        for k in range(9):
            labels = torch.tensor([k // 3, k % 3])
            for table, divisor in zip(tables, (3, 2), strict=True):
                u = by_hand(client, values["concealing"][c], images[c], y, labels, 0.7, divisor)
                table[k, c] = -0.5 * (g - u).square().sum() / SIGMA**2
    torch.testing.assert_close(found.logsumexp(0).diff(), tables[0].logsumexp(0).diff())
    torch.testing.assert_close(found.sort(0).values.diff(dim=0), tables[0].sort(0).values.diff(dim=0))
    assert not torch.allclose(found.logsumexp(0).diff(), tables[1].logsumexp(0).diff(), rtol=1e-3)


def test_what_cannot_be_concealed_is_refused() -> None:
    for settings, said in (({"mixing": 1.5}, "mixing must lie between 0 and 1"), ({"steps": 0}, "steps must be a pos")):
        with pytest.raises(BadInput, match=said):
            from_data(defence="conceal", defence_settings=settings)
    with pytest.raises(BadInput, match="the loss is mse"):
        from_data(defence="conceal", loss="mse")
    mixing = own(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)), (1, 2, 2))
    with pytest.raises(BadInput, match="BatchNorm in train mode"):
        conceal.require(mixing, 0.7)
