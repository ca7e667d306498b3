"""Groups of chains in processes of their own: the same draws, and an end whatever happens to them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from pplleak.errors import BadInput
from pplleak.runs import parallel

CPU = torch.device("cpu")


def walk(k: int) -> Iterator[dict[str, Tensor]]:
    """A random walk of k + 1 chains, and the process that drew it."""
    z = torch.full((k + 1, 3), float(k))
    while True:
        z = z + torch.randn_like(z)
        yield {"z": z, "process": torch.full((k + 1,), os.getpid())}


def drawn(count: int = 20) -> dict[str, Tensor]:
    draws = list(islice(parallel.side_by_side(walk, 3, 7, CPU), count))
    return {name: torch.stack([draw[name] for draw in draws], 1) for name in draws[0]}


def test_processes_draw_what_turns_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    forked, here = drawn(), torch.randn(3)
    assert forked["z"].shape == (6, 20, 3) and len(set(forked["process"][:, 0].tolist())) == 3
    monkeypatch.setattr(parallel, "_can_fork", lambda device: False)
    torch.manual_seed(1)  # what is drawn elsewhere is another thing
    torch.randn(5)
    turns = drawn()
    assert torch.equal(forked["z"], turns["z"]) and set(turns["process"].unique().tolist()) == {os.getpid()}
    torch.manual_seed(0)
    assert torch.equal(here, torch.randn(3))  # and the generator of the caller is where it was
    step = forked["z"].diff(dim=1).flatten(1)
    correlation = torch.corrcoef(step)[~torch.eye(6, dtype=torch.bool)]
    assert float(correlation.abs().max()) < 0.6  # of 57 numbers each: groups that shared a seed would have 1


def test_nothing_is_forked_beside_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert set(drawn()["process"].unique().tolist()) == {os.getpid()}


def test_no_process_is_left_behind() -> None:
    draws = parallel.side_by_side(walk, 3, 0, CPU)
    next(draws)
    assert len(multiprocessing.active_children()) == 2
    threads = torch.get_num_threads()
    draws.close()
    assert multiprocessing.active_children() == [] and torch.get_num_threads() >= threads


def test_a_group_that_fails_says_why() -> None:
    def chain(k: int) -> Iterator[dict[str, Tensor]]:
        for _ in range(3):
            yield {"z": torch.zeros(1)}
        if k == 1:
            raise BadInput("no such wall")
        while True:
            yield {"z": torch.zeros(1)}

    with pytest.raises(BadInput, match="no such wall"):
        list(islice(parallel.side_by_side(chain, 2, 0, CPU), 10))


def test_a_group_that_is_killed_is_missed_at_once() -> None:
    draws = parallel.side_by_side(walk, 2, 0, CPU)
    (child,) = set(next(draws)["process"].tolist()) - {os.getpid()}
    os.kill(child, signal.SIGKILL)
    with pytest.raises(BadInput, match="setting processes to 1"):
        list(islice(draws, 1000))


def test_chains_are_shared_out_evenly() -> None:
    assert parallel.shares(7, 3) == [slice(0, 3), slice(3, 5), slice(5, 7)]
    assert parallel.shares(2, 8) == [slice(0, 1), slice(1, 2)]  # no group without a chain
