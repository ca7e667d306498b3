"""Sums over entries by few nodes are the sums over the entries, with their slopes; the filter they serve agrees."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pplleak import channels
from pplleak.channels import _gathered as gathered
from pplleak.channels import svt
from pplleak.client.update import DenseUpdate

EDGES = [0.0, 0.3, 1.0]


def kinked(s: torch.Tensor) -> torch.Tensor:
    """Smooth but for a kink at 0.3, nowhere a polynomial."""
    return torch.where(s < 0.3, torch.exp(s - 0.3), 2 - torch.exp(0.3 - s))


@pytest.mark.parametrize("edges", [EDGES, [0.0, 1.0]], ids=["at the kink", "across it"])
def test_nodes_stand_for_all_entries_where_the_function_is_smooth_between_edges(edges: list[float]) -> None:
    torch.manual_seed(0)
    s = torch.rand(3, 500, dtype=torch.float64)
    s[:, :50] = 1.0  # cut off at the end
    masks = (torch.rand(3, 2, 500) < 0.3).double()
    nodes, weights = gathered.gather(s, masks, edges, 12)
    assert weights.sum(-1).allclose(masks.sum(-1))
    wanted = (masks * kinked(s)[:, None]).sum(-1)
    assert (weights @ kinked(nodes)).allclose(wanted, rtol=1e-11, atol=0) == (edges == EDGES)


def test_fewer_pieces_are_made_of_more_of_them() -> None:
    s = torch.rand(2, 300, dtype=torch.float64)
    masks = (torch.rand(2, 2, 300) < 0.5).double()
    fine = gathered.gather(s, masks, [0.0, 0.1, 0.3, 0.7, 1.0], 7)
    for mine, own in zip(gathered.coarser(*fine, EDGES, 7), gathered.gather(s, masks, EDGES, 7), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-10, atol=1e-10)


def test_as_many_nodes_are_taken_as_the_error_asks_for() -> None:
    """1/(1 + (4 z)²) on [−1, 1]: its singularity is a quarter of half the interval off."""
    s = torch.rand(200, dtype=torch.float64)

    def far(count: int) -> float:
        nodes, weights = gathered.gather(s, torch.ones(1, 200).double(), [0.0, 1.0], count)
        f = [1 / (1 + (4 * (2 * v - 1)).square()) for v in (s, nodes)]
        return float((weights @ f[1] - f[0].sum()).abs()) / 200

    count = gathered.nodes_for(0.25, 1e-9)
    assert far(count) < 1e-8 < far(count // 3)


def test_the_weights_have_both_derivatives() -> None:
    torch.manual_seed(0)
    s, masks = 0.98 * torch.rand(7, dtype=torch.float64) + 0.01, (torch.rand(2, 7) < 0.5).double()
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: gathered.gather(s, masks, EDGES, 5)[1], s)
    assert torch.autograd.gradgradcheck(lambda s: gathered.gather(s, masks, EDGES, 5)[1], s)


@pytest.mark.parametrize(("epsilon", "tau"), [(1.0, 0.01), (200.0, 0.02), (200.0, -0.05)])
@pytest.mark.parametrize("replace", [True, False])
def test_a_sparse_vector_filter_gathers_its_entries_without_changing_its_density(
    epsilon: float, tau: float, replace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    u = 0.03 * torch.randn(2, 1, 1200, dtype=torch.float64)
    settings: dict[str, Any] = {"share": 0.1, "epsilon": epsilon, "gamma": 0.05, "tau": tau, "replace": replace}
    g = channels.SVT(DenseUpdate(u[0]), noise_var=4.0, **settings).sample()

    def found(fewer: float, error: float = svt.ERROR) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(svt, "FEWER", fewer)
        monkeypatch.setattr(svt, "ERROR", error)
        at = u.clone().requires_grad_()
        value = channels.SVT(DenseUpdate(at), noise_var=4.0, **settings).log_prob(g)
        return value.detach(), torch.autograd.grad(value.sum(), at)[0]

    (value, slope), (own, own_slope) = found(4), found(math.inf)
    assert value.allclose(own, rtol=1e-9) and (slope - own_slope).abs().max() < 1e-7 * own_slope.abs().max()
    rough, _ = found(4, error=0.5)  # the twin: too few nodes
    assert not rough.allclose(own, rtol=1e-9)
