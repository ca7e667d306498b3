"""Local training (FedAvg): θ_after − θ_before against a loop written by hand, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of, own
from layers import CASES, assert_close, assert_quantities, some_g
from torch import Tensor
from torch.func import functional_call

from pplleak.client import Client
from pplleak.client.training import LocalTraining
from pplleak.client.update import DenseUpdate
from pplleak.errors import BadInput

TRAININGS = {
    "one step": LocalTraining(0.5),
    "three steps": LocalTraining(0.3, 3),
    "five steps of two examples": LocalTraining(0.3, 5, 2),
}
NETWORKS = ["mlp", "conv", "layer norm", "batch norm in train mode", "tied weights"]
each = pytest.mark.parametrize("how", TRAININGS)
each_network = pytest.mark.parametrize("case", NETWORKS)


def client_of(case: str, how: str) -> Client:
    make, shape, _ = CASES[case]
    return Client(own(make, shape).network.requires_grad_(), shape, 3, TRAININGS[how])


def by_hand(client: Client, x: Tensor, y: Tensor, how: str) -> Tensor:
    """One client's u, (size,): plain SGD, one step after another."""
    training = TRAININGS[how]
    weights = {n: p.clone().requires_grad_() for n, p in client.network.named_parameters()}
    start, size, examples = dict(weights), training.batch_size or len(x), len(x)
    first = 0
    for _ in range(training.steps):
        picked = [k % examples for k in range(first, first + size)]
        first += size
        loss = F.cross_entropy(functional_call(client.network, weights, (x[picked],)), y[picked])
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {n: w - training.lr * s for (n, w), s in zip(weights.items(), slopes, strict=True)}
    return torch.cat([(w - start[n]).flatten() for n, w in weights.items()])


@each_network
@each
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_the_update_is_how_the_weights_moved(case: str, how: str, lead: tuple[int, ...]) -> None:
    client = client_of(case, how)
    x, y = batch_of(client, lead, 4)
    chains = zip(x.reshape(-1, 4, *client.input_shape), y.reshape(-1, 4), strict=True)
    u = torch.stack([by_hand(client, a, b, how) for a, b in chains])
    found = client.update(x, y)
    assert isinstance(found, DenseUpdate)
    assert_quantities(found, u.detach().reshape(*lead, 1, -1), some_g(client))


@each_network
@each
def test_the_gradient_of_its_distance_in_x_equals_that_of_the_loop(case: str, how: str) -> None:
    client = client_of(case, how)
    x, y = batch_of(client, (), 4)
    g = by_hand(client, x, y, how).detach() + 1e-2 * some_g(client)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    (found,) = torch.autograd.grad(client.update(a, y).sqdist(g), a)
    (expected,) = torch.autograd.grad((g - by_hand(client, b, y, how)).square().sum(), b)
    assert_close(found, expected)
    one_step = Client(copy.deepcopy(client.network).requires_grad_(), client.input_shape, 3, LocalTraining(0.3))
    c = x.clone().requires_grad_()
    (twin,) = torch.autograd.grad(one_step.update(c, y).sqdist(g), c)
    assert how == "one step" or float((twin - expected).norm()) > 1e-3 * float(expected.norm())


def test_one_step_over_all_examples_is_the_scaled_gradient() -> None:
    make, shape, _ = CASES["mlp"]
    gradient, step = own(make, shape), client_of("mlp", "one step")
    x, y = batch_of(gradient, (), 4)
    assert_close(step.update(x, y).materialise(), -0.5 * gradient.update(x, y).materialise())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"lr": 0.0}, "learning rate"),
        ({"lr": float("nan")}, "learning rate"),
        ({"lr": 0.1, "steps": 0}, "local steps"),
        ({"lr": 0.1, "batch_size": 0}, "local batch size"),
    ],
)
def test_impossible_training_is_refused(how: dict[str, float], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        LocalTraining(**how)  # type: ignore[arg-type]


def test_a_step_of_more_examples_than_there_are_is_refused() -> None:
    client = client_of("mlp", "five steps of two examples")
    with pytest.raises(BadInput, match="only 1 examples"):
        client.update(*batch_of(client, (), 1))
