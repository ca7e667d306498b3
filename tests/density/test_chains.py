"""Draws that are taken one by one, and kept on Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pplleak.density.chains import keep
from pplleak.progress import ProgressBar, silent


def chain() -> Iterator[dict[str, Tensor]]:
    for k in range(10):
        yield {"z": torch.full((4, 3), float(k)), "lp": torch.full((4,), -float(k))}


def interrupted(after: int) -> ProgressBar:
    def progress(label: str, total: int) -> Iterator[int]:
        for k in range(total):
            if k == after:
                raise KeyboardInterrupt
            yield k

    return progress


def test_draws_are_stacked_along_the_second_axis_and_no_more_are_taken_than_asked_for() -> None:
    source = chain()
    kept, reasons = keep(source, 6, silent)
    assert kept["z"].shape == (4, 6, 3) and kept["lp"].shape == (4, 6)
    assert torch.equal(kept["lp"][0], -torch.arange(6.0)) and reasons == []
    assert float(next(source)["lp"][0]) == -6


def test_ctrl_c_keeps_whole_draws_and_says_so() -> None:
    kept, reasons = keep(chain(), 6, interrupted(2))
    assert torch.equal(kept["z"][0, :, 0], torch.arange(2.0))
    assert reasons == ["interrupted: 2 of 6 draws a chain were kept"]


def test_ctrl_c_inside_a_draw_loses_that_draw_alone() -> None:
    def struck() -> Iterator[dict[str, Tensor]]:
        source = chain()
        yield from (next(source) for _ in range(3))
        raise KeyboardInterrupt

    kept, reasons = keep(struck(), 6, silent)
    assert kept["lp"].shape == (4, 3) and reasons == ["interrupted: 3 of 6 draws a chain were kept"]


def test_ctrl_c_before_the_first_draw_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        keep(chain(), 6, interrupted(0))
