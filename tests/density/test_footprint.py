"""What a log-density takes of the memory is counted before it is asked for."""

from __future__ import annotations

import pytest
import torch
from scenes import from_data

from pplleak import memory
from pplleak.density import build, room
from pplleak.density.footprint import by_rows, peak
from pplleak.density.whitening import hessian
from pplleak.errors import BadInput
from pplleak.programs import MODEL, load
from pplleak.studies.attack.attack import believe

SIDE = 200
MATRIX = 4 * SIDE**2  # bytes


def test_the_peak_is_that_of_what_is_alive_together() -> None:
    x = torch.ones(SIDE, SIDE)

    def freed() -> None:
        y = x * 2
        z = y * 3
        del y
        z + 1

    def kept() -> None:  # wrong twin: the same operations, of which one's result lives longer
        y = x * 2
        z = y * 3
        z + y

    def differentiated() -> None:
        a = x.clone().requires_grad_()
        (a.sin().exp() * a).sum().backward()

    assert peak(freed) == 2 * MATRIX
    assert peak(kept) == 3 * MATRIX
    assert 4 * MATRIX < peak(differentiated) < 6 * MATRIX
    assert peak(lambda: None) == 0


def test_rows_take_what_one_and_two_of_them_say() -> None:
    x = torch.ones(SIDE, SIDE)

    def work(rows: int) -> None:
        shared = x * 2
        (shared * torch.ones(rows, 1, 1)).exp()

    once, each = by_rows(work)
    assert each == 2 * MATRIX  # the product and its exponential
    assert once + 5 * each == peak(lambda: work(5))
    assert once < 2 * MATRIX < once + each


@pytest.mark.parametrize("free", [4, 2**10])
def test_a_sum_over_labels_that_does_not_fit_is_refused_or_moved_through(
    free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind clipping every label vector has updates of its own, all of them side by side."""
    observed = from_data(channel="dpsgd", channel_settings={"noise_multiplier": 0.1, "clip": 1.0}, batch_size=3,
                         labels_shared=False)  # fmt: skip
    believed = believe(load("models", MODEL), observed, {})
    monkeypatch.setattr(room, "ROOM", 2**10)
    monkeypatch.setattr(memory, "available", lambda: free * 2**20)
    if free > 1000:  # wrong twin: there is room
        whole = build(believed, observed.client, observed)
        assert len(whole.discrete["y"]) == 220  # 3 labels out of 10, in any order
        return
    with pytest.raises(BadInput, match=r"a sum over 220 labels of 3 examples takes about .* GiB.*give the labels"):
        build(believed, observed.client, observed)
    moved = build(believed, observed.client, observed, moves=True)
    assert "y" in moved.moved and not moved.discrete


def test_a_sum_takes_what_was_foretold() -> None:
    observed = from_data(channel="dpsgd", channel_settings={"noise_multiplier": 0.1, "clip": 1.0}, batch_size=2,
                         labels_shared=False)  # fmt: skip
    whole = build(believe(load("models", MODEL), observed, {}), observed.client, observed)
    z = whole.sample_prior(1)
    once, each = by_rows(lambda k: room.first_labels(whole, k).value_and_grad(z))
    taken = peak(lambda: whole.value_and_grad(z))
    assert once + 55 * each == pytest.approx(taken, rel=0.1) and taken > 20 * each


@pytest.mark.slow
def test_chains_in_parts_have_the_numbers_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = from_data(network="lenet", dtype="float64")
    density = build(believe(load("models", MODEL), observed, {}), observed.client, observed)
    z = density.sample_prior(6)
    assert room.at_once(density, 6) == 6
    monkeypatch.setattr(room, "ROOM", 2**10)
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    assert room.at_once(density, 6) in (2, 3)
    for found, expected in zip(density.in_parts(6)(z), density.value_and_grad(z), strict=True):
        torch.testing.assert_close(found, expected)
    h, twin = hessian(density, z[0], chunk=7), hessian(density, z[1], chunk=7)
    monkeypatch.undo()
    torch.testing.assert_close(h, hessian(density, z[0]))
    assert not torch.allclose(h, twin)
