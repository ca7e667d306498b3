"""The lazy update is the gradient: against plain `torch.autograd.grad`, one example at a time, in float64."""

from __future__ import annotations

import pytest
import torch
from conftest import batch_of
from layers import CASES, assert_close, assert_quantities, client_of, reference, some_g
from torch import Tensor

from pplleak.client import taps
from pplleak.client.factors import Factor
from pplleak.client.update import DenseUpdate, LazyUpdate
from pplleak.client.windows import Window

each_case = pytest.mark.parametrize("case", list(CASES))


@each_case
def test_a_network_keeps_its_closed_form_exactly_where_it_has_one(case: str) -> None:
    assert client_of(case).lazy is CASES[case][2]
    kind = LazyUpdate if CASES[case][2] else DenseUpdate
    assert isinstance(client_of(case).update(*batch_of(client_of(case))), kind)


# Leading dimensions and batch: none, one, several and two of them, of one example and of more.
SHAPES: list[tuple[tuple[int, ...], int]] = [((), 1), ((), 4), ((1,), 1), ((3,), 1), ((3,), 4), ((2, 2), 2)]


@each_case
def test_every_quantity_of_the_update_equals_plain_autograd(case: str) -> None:
    client = client_of(case)
    for lead, batch in SHAPES:
        x, y = batch_of(client, lead, batch)
        expected = reference(client, x, y)
        assert_quantities(client.update(x, y), expected, some_g(client))
        assert_close(client.materialised(x, y).examples, expected)


@each_case
def test_the_gradient_of_sqdist_in_x_equals_plain_autograd(case: str) -> None:
    client, g = client_of(case), some_g(client_of(case))

    def lazy(x: Tensor, y: Tensor) -> Tensor:
        return client.update(x, y).sqdist(g)

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return (g - reference(client, x, y, graph=True).sum(-2)).square().sum(-1)

    for lead, batch in [((), 1), ((3,), 4)]:
        x, y = batch_of(client, lead, batch)
        gradients = []
        for distance in (lazy, plain):
            leaf = x.clone().requires_grad_()
            gradients.append(torch.autograd.grad(distance(leaf, y).sum(), leaf)[0])
        assert_close(*gradients)


@each_case
def test_an_expanded_update_repeats_itself(case: str) -> None:
    client = client_of(case)
    for lead in [(), (3,)]:
        x, y = batch_of(client, lead, 2)
        examples = reference(client, x, y)
        grown = client.update(x, y).expand(torch.Size((2, *lead)))
        assert_quantities(grown, examples.expand(2, *examples.shape), some_g(client))


@pytest.mark.parametrize("case", ["mlp", "conv", "layer norm"])
def test_leading_dimensions_of_labels_broadcast_against_those_of_images(case: str) -> None:
    client = client_of(case)
    x, y = batch_of(client, (3,), 2)
    labels = torch.stack([y, (y + 1) % 3])[:, :1]  # (2, 1, batch) against chains (3,)
    found = client.update(x, labels)
    expected = torch.stack([reference(client, x, k.expand(3, 2)) for k in labels])
    assert_quantities(found, expected, some_g(client))


def test_the_cases_take_every_form_of_the_closed_form() -> None:
    forms: set[tuple[bool, bool]] = set()
    for case in ("mlp", "wide layer on tokens", "conv", "conv as wide as the image"):
        for batch in (1, 4):
            update = client_of(case).update(*batch_of(client_of(case), (), batch))
            assert isinstance(update, LazyUpdate)
            factors = [f for f in update.factors if isinstance(f, Factor)]
            forms |= {(f.dense, f.inputs.shape[-4] * f.inputs.shape[-2] > 1) for f in factors}
    assert forms == {(False, False), (False, True), (True, False), (True, True)}  # (∇W itself?, several rows?)


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][2]])
def test_the_form_that_a_layer_takes_changes_no_result(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(case)
    x, y = batch_of(client, (3,), 2)
    expected = reference(client, x, y)
    for dense in (True, False):  # weight gradients, Gram matrices
        monkeypatch.setattr(Factor, "dense", dense)
        assert_quantities(client.update(x, y), expected, some_g(client))


@pytest.mark.parametrize("case", [c for c in CASES if "conv" in c and CASES[c][2]])
def test_kernels_of_convolutions_and_products_of_patches_are_the_same(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, g = client_of(case), some_g(client_of(case))
    x, y = batch_of(client, (3,), 2)
    found = []
    for few in (0, 10**6):
        monkeypatch.setattr(taps, "FEW", few)
        leaf = x.clone().requires_grad_()
        distance = client.update(leaf, y).sqdist(g)
        found.append((distance.detach(), *torch.autograd.grad(distance.sum(), leaf)))
    for kernel, product in zip(*found, strict=True):
        assert_close(kernel, product)


def test_what_a_kernel_has_beyond_the_image_is_neither_read_nor_shared() -> None:
    client = client_of("conv on one pixel, grouped")
    found = client.update(*batch_of(client))
    assert isinstance(found, LazyUpdate)
    (window,) = {f.window for f in found.factors if isinstance(f, Factor) and f.window}
    assert window == Window((3, 3), (1, 2), (1, 2))
    u = client.split(found.materialise())["2.weight"]
    assert bool((window.filled(window.of(u)) == u).all()) and float(u.abs().max()) > 0


@each_case
def test_split_names_the_tensors_that_autograd_would_share(case: str) -> None:
    client = client_of(case)
    x, y = batch_of(client, (3,), 2)
    u = client.update(x, y).materialise()
    parts = client.split(u)
    assert {n: p.shape[1:] for n, p in parts.items()} == client.layers
    assert torch.equal(torch.cat([p.reshape(3, -1) for p in parts.values()], 1), u)
    assert client.update_size == u.shape[-1]
