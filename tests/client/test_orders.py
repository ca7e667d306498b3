"""A client that shuffles: its order is drawn as a DataLoader's is, and an adversary sums over what it does not know."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import run
from conftest import batch_of, tiny
from torch import Tensor

import pplleak as pl
from pplleak import programs
from pplleak.client import Client
from pplleak.client.orders import MOST, NEAR, Orders
from pplleak.client.training import LocalTraining
from pplleak.density import build
from pplleak.errors import BadInput
from pplleak.studies.attack.attack import believe

LOCAL = LocalTraining(0.5, batch_size=2, epochs=2, shuffle=True, optimizer=pl.Named.parse("sgd:momentum=0.9"))


def a_client(local: LocalTraining = LOCAL) -> Client:
    return Client(tiny(activation="tanh").network.requires_grad_(True), (1, 2, 2), local=local)


def trained(client: Client, x: Tensor, y: Tensor, order: Tensor) -> Tensor:
    """θ_after − θ_before by torch.optim, batch by batch in a given order."""
    module = copy.deepcopy(client.network)
    parameters = [p.requires_grad_() for p in module.parameters()]
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
    for epoch in order:
        for batch in epoch.split(2):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
    return torch.cat([(p.detach() - b).flatten() for p, b in zip(parameters, before, strict=True)])


def test_the_update_in_an_order_is_that_of_torchs_loop() -> None:
    client = a_client()
    x, y = batch_of(client, size=5)
    order = torch.tensor([[4, 0, 1, 3, 2], [2, 1, 0, 4, 3]])
    expected = trained(client, x, y, order)
    torch.testing.assert_close(client.update(x, y, order=order).materialise(), expected, rtol=1e-9, atol=1e-12)
    plain = client.update(x, y).materialise()  # as they are given
    torch.testing.assert_close(plain, trained(client, x, y, torch.arange(5).expand(2, 5)), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(plain, expected, rtol=1e-3)
    several = client.update(x, y, order=torch.stack([order, order.flip(0)])[:, None].expand(2, 3, 2, 5)).materialise()
    torch.testing.assert_close(several[0, 2], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(several[1, 0], trained(client, x, y, order.flip(0)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("batches", "epochs"), [((2, 2), 1), ((2, 2), 2), ((2, 2, 1), 1), ((3,), 2)])
def test_the_orders_are_all_of_them_once(batches: tuple[int, ...], epochs: int) -> None:
    orders = Orders(batches, epochs)
    grid = orders.enumerate_support(expand=False)
    assert grid.shape == (orders.count, epochs, sum(batches))
    distinct = {tuple(o.flatten().tolist()) for o in grid}
    assert len(distinct) == orders.count
    assert orders.count == (math.factorial(sum(batches)) / math.prod(math.factorial(b) for b in batches)) ** epochs
    torch.testing.assert_close(orders.log_prob(grid).logsumexp(0), torch.tensor(0.0).double())
    torch.manual_seed(0)
    drawn = {tuple(o.flatten().tolist()) for o in orders.sample(torch.Size([40 * orders.count]))}
    assert drawn == distinct  # each is missed with e^-40
    near = orders.neighbours(grid[0])
    assert {tuple(o.flatten().tolist()) for o in near} <= distinct - {tuple(grid[0].flatten().tolist())}
    assert len(near) == (0 if len(batches) == 1 else epochs * {(2, 2): 4, (2, 2, 1): 8}[batches])


def test_an_adversary_sums_over_the_orders() -> None:
    client = a_client(replace(LOCAL, epochs=1))
    x, y = batch_of(client, size=4)
    orders = Orders.of(client.local, 4)  # type: ignore[arg-type]
    g = client.update(x, y, order=torch.tensor([[1, 3, 0, 2]])).materialise()
    observed = pl.Observation(g + 0.01, 4, y, client)
    density = build(believe(programs.load("models", "optimal"), observed, {"prior": "uniform", "sigma": 0.05}),
                    client, observed)  # fmt: skip
    z = torch.randn(2, density.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = density.constrain(z)[0]["x"]
    updates = [client.update(values, y, order=o[None]) for o in orders.enumerate_support(expand=False)]
    terms = [-0.5 * (g + 0.01 - u.materialise()).square().sum(-1) / 0.05**2 for u in updates]
    by_hand, found = torch.stack(terms).logsumexp(0), density(z, jacobian=False)
    torch.testing.assert_close(found[0] - found[1], by_hand[0] - by_hand[1], rtol=1e-9, atol=1e-9)
    assert density.exchangeable is (len(y.unique()) < 4)
    given = build(believe(programs.load("models", "optimal"), observed, {"prior": "uniform", "sigma": 0.05}),
                  a_client(replace(LOCAL, epochs=1, shuffle=False)), observed)  # fmt: skip
    assert abs(float(given(z)[0] - given(z)[1] - (found[0] - found[1]))) > 1


@pytest.mark.slow
def test_a_client_that_shuffles_is_attacked_better_by_who_knows_that(tmp_path: Path) -> None:
    file = tmp_path / "o.safetensors"
    local = ["--local-lr", "1", "--local-epochs", "2", "--local-batch-size", "2", "--local-shuffle"]
    assert run(["observe", "--batch-size", "4", *local, "--network.widths", "64", "--sigma", "0.001", "--seed", "1",
                "--index", "3", "--out", str(file)]) == 0  # fmt: skip
    plain = pl.observe(pl.Scenario(index=3, batch_size=4))
    assert plain.truth is not None
    observed = replace(pl.load(file), public=plain.public)
    assert observed.client.local is not None and observed.client.local.shuffle
    ordered = replace(observed, client=replace(observed.client, local=replace(observed.client.local, shuffle=False)))
    errors, fits = [], []
    for seen in (observed, ordered):
        found = pl.attack(seen, inference="map", settings={"starts": 1, "steps": 120})
        errors.append(float(((found.mode - plain.truth.numpy()) ** 2).mean()))
        fits.append(found.summary["fits"])
    assert errors[0] < 0.01 and errors[0] < errors[1] / 5
    assert fits[0] is not None and fits[1] is False


def test_orders_that_cannot_be_summed_over_are_one_line() -> None:
    assert Orders((4, 4, 2), 2).count > MOST
    with pytest.raises(BadInput, match="too many to sum over: take the inference map"):
        Orders((4, 4, 2), 2).enumerate_support()
    huge = Orders((1,) * 50, 9_999)  # what a file may ask for: nothing is multiplied out
    with pytest.raises(BadInput, match=r"about 10\^644766"):
        huge.enumerate_support()
    few = Orders((1,) * 50, 20)
    assert len(few.neighbours(few.sample())) == NEAR
    with pytest.raises(BadInput, match="say how many epochs"):
        LocalTraining(0.1, shuffle=True)
    client = a_client(replace(LOCAL, shuffle=False))
    with pytest.raises(BadInput, match="does not shuffle"):
        client.update(*batch_of(client, size=4), order=torch.arange(4)[None])
