"""Dropout in train mode: the update of the network that the masks leave, with the masks as a function of noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of
from layers import Net, V, head
from scenes import from_data
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pplleak import density, programs
from pplleak.client import Client, masks
from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput
from pplleak.studies.attack.attack import attack, believe

IMAGE = (2, 4, 4)


class Block(nn.Module):
    """A residual block that stochastic depth leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.depth = nn.Conv2d(2, 2, 3, padding=1), StochasticDepth(0.4, "row")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.depth(self.inner(x).tanh())
        return out


# name -> network, rates and shapes of its masks in the order in which they are used, and the same with masks given
Masked = Callable[[nn.Module, Tensor, list[Tensor]], Tensor]
CASES: dict[str, tuple[Callable[[], nn.Module], list[float], list[tuple[int, ...]], Masked]] = {
    "dropout": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.Dropout(0.3), nn.Linear(5, 3)), [0.3], [(5,)],
        lambda n, x, m: n[3](n[1](n[0](x)) * m[0]),  # type: ignore[index]
    ),
    "two, one by channel": (
        lambda: nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Dropout(0.2),
                              nn.Linear(12, 3)),
        [0.5, 0.2], [(2, 1, 1), (12,)],
        lambda n, x, m: n[5](n[3](n[2](n[1](x * m[0]))) * m[1]),  # type: ignore[index]
    ),
    "stochastic depth": (
        lambda: nn.Sequential(Block(), nn.Flatten(), nn.Linear(32, 3)), [0.4], [(1, 1, 1)],
        lambda n, x, m: n[2](n[1](x + m[0] * n[0].inner(x).tanh())),  # type: ignore[index]
    ),
}  # fmt: skip


def made(case: str) -> Client:
    torch.manual_seed(0)
    return Client(CASES[case][0]().double().train(), IMAGE, 3)


@pytest.mark.parametrize("case", CASES)
def test_the_update_is_that_of_the_network_that_the_masks_leave(case: str) -> None:
    build, rates, shapes, masked = CASES[case]
    client = made(case)
    torch.manual_seed(0)
    network = build().double().eval()
    assert client.lazy and dict(client.layers) == {n: p.shape for n, p in network.named_parameters()}
    x, y = batch_of(client, (), 4)
    noise = client.noise(4)
    assert noise is not None and noise.shape == (4, sum(torch.Size(s).numel() for s in shapes))
    parts = noise.split([torch.Size(s).numel() for s in shapes], 1)
    given = [masks.mask(e, p).reshape(4, *s) / (1 - p) for e, p, s in zip(parts, rates, shapes, strict=True)]
    assert all({0.0} < set(m.unique().tolist()) for m in given)
    loss = F.cross_entropy(masked(network, x, given), y)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])
    torch.testing.assert_close(client.update(x, y, noise).materialise(), expected)
    torch.testing.assert_close(client.materialised(x, y, noise).materialise(), expected)
    kept = [torch.full_like(m, 1 / (1 - p)) for m, p in zip(given, rates, strict=True)]  # at ε = 0
    whole = torch.autograd.grad(F.cross_entropy(masked(network, x, kept), y), list(network.parameters()))
    torch.testing.assert_close(client.update(x, y).materialise(), torch.cat([g.flatten() for g in whole]))
    assert not torch.allclose(expected, client.update(x, y).materialise(), rtol=1e-2)  # the twin


def test_masks_are_kept_as_often_as_torch_keeps_them() -> None:
    noise = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    for rate in (0.1, 0.5):
        kept = masks.mask(noise, rate)
        assert set(kept.unique().tolist()) == {0.0, 1.0}
        assert float(kept.mean()) == pytest.approx(1 - rate, abs=4 * (rate * (1 - rate) / 40_000) ** 0.5)


@pytest.mark.parametrize(
    "network",
    [
        lambda: head(5, nn.Linear(6, 5), nn.AlphaDropout(0.5)),
        lambda: head(5, nn.Linear(6, 5), nn.Dropout(1.0)),
        lambda: head(5, nn.Linear(6, 5), StochasticDepth(0.5, "batch")),
    ],
    ids=["alpha", "all", "whole batches"],
)
def test_other_dropouts_are_refused_by_name(network: Callable[[], nn.Module]) -> None:
    with pytest.raises(BadInput, match=r"'1' drops at random in a way that is not modelled: call .eval\(\) on it"):
        Client(network(), V, 3)


def test_a_dropout_that_is_no_module_and_local_steps_behind_one_are_refused() -> None:
    functional = Net(lambda n, x: F.dropout(n.a(x), 0.5), a=nn.Linear(6, 3))  # type: ignore[operator]
    with pytest.raises(BadInput, match="random"):
        Client(functional, V, 3)
    with pytest.raises(BadInput, match="draws noise"):
        Client(head(5, nn.Linear(6, 5), nn.Dropout(0.5)), V, 3, local=LocalTraining(0.1, 2))


@pytest.mark.slow
def test_the_default_model_has_the_masks_of_the_clients_own_dropout_as_latents(tmp_path: Path) -> None:
    """And finds the image, which one who believes in the whole network does not."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net(input_shape, num_classes):\n"
        "    layers = nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, num_classes)\n"
        "    return nn.Sequential(*layers).train()\n"
    )
    target = from_data(network=f"{tmp_path / 'net.py'}:net", sigma=1e-3, index=4)
    assert target.client.kinks == ("dropout",)
    bound = believe(programs.load("models", "optimal"), target)
    assert {s.name for s in density.build(bound, target.client, target).sites} == {"z", "noise"}
    knows, other = (
        attack(target, "optimal", "map", beliefs=beliefs, settings={"steps": 300, "starts": 8})
        for beliefs in ({}, {"masks": False})
    )
    assert target.truth is not None
    errors = [float((torch.as_tensor(p.mode) - target.truth).square().mean()) for p in (knows, other)]
    assert errors[0] < errors[1] / 4
