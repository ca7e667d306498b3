"""Draws of Markov chains, taken one by one and kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pplleak.errors import BadInput
from pplleak.progress import ProgressBar


def require_superchains(chains: int, superchains: int, settle: int) -> None:
    """Raises BadInput unless so many chains can go on from `superchains` of them (0: none do), and part in `settle`
    draws."""
    if superchains and (superchains < 2 or chains % superchains):
        raise BadInput(f"{chains} chains cannot be cut into {superchains} superchains: take two or more, a divisor of "
                       "their number")  # fmt: skip
    if settle < 0:
        raise BadInput(f"settle must not be negative, not {settle}: it is a number of draws")


def copies(chains: int, superchains: int) -> Tensor:
    """Which of the superchains each chain goes on from, (chains,): neighbours from the same one."""
    return torch.arange(superchains).repeat_interleave(chains // superchains)


def keep(chain: Iterator[dict[str, Tensor]], draws: int, progress: ProgressBar) -> tuple[dict[str, Tensor], list[str]]:
    """The next `draws` draws of a Markov chain, under "sampling"; Ctrl-C keeps those that are finished.

    Args:
        chain: yields one draw at a time: name -> (chains, …).

    Returns:
        name -> (chains, draw, …), and the reasons not to trust them: that they were interrupted, or none.

    Raises:
        KeyboardInterrupt: there is no draw to keep.
    """
    kept: list[dict[str, Tensor]] = []
    reasons = []
    try:
        for _ in progress("sampling", draws):
            kept.append(next(chain))
    except KeyboardInterrupt:
        if not kept:
            raise
        reasons.append(f"interrupted: {len(kept)} of {draws} draws a chain were kept")
    return {name: torch.stack([draw[name] for draw in kept], 1) for name in kept[0]}, reasons
