"""A maximum of log p(z, d | g) over coordinates z and discrete sites d with too many values to sum over.

Labels of a large batch, and the order in which a client shuffled, are such sites. The search climbs in z at given d,
then moves every start to the best of its neighbours d' (one label changed, two exchanged), as long as one is better,
and so on in turns: coordinate ascent, whose end is a maximum against every such move, and not for sure the highest one.
Labels begin at what the last layer's gradient says (`pplleak.density.label_recovery`) in half of the starts, where its
rules apply, and at draws from the prior elsewhere.

It is a mode of z and d together: nothing is summed out, and what it says of d is a point without uncertainty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pplleak.density import label_recovery
from pplleak.density.density import Density
from pplleak.density.search import Maximum, maximise
from pplleak.errors import BadInput
from pplleak.progress import ProgressBar, silent

TURNS = 4  # of climbing and moving, in half of all steps; the other half is one climb at the end
CHUNK = 64  # neighbours that are looked at at once


def climb(density: Density, *, starts: int, steps: int, progress: ProgressBar = silent, **how: Any) -> tuple[
    Maximum, dict[str, Tensor]
]:  # fmt: skip
    """The ends of all starts, best first, and the values (1, …) of the moved sites at the best.

    Args:
        how: settings of `maximise`.
    """
    z, given = density.sample_prior(starts), {n: law.sample((starts,)) for n, law in density.moved.items()}
    read = _read(density) if "y" in given else None
    if read is not None:
        given["y"][: (starts + 1) // 2] = read
    given = {n: v.to(z.device) for n, v in given.items()}
    short = max(1, steps // (2 * TURNS))
    curves = []
    for _ in range(TURNS):
        found = maximise(density.fixed(given), begin=z, starts=starts, steps=short, progress=progress, **how)
        z, given = found.z, {n: v[found.start] for n, v in given.items()}
        curves.append(found.curve)
        if found.interrupted:
            break
        given = moved(density, z, given)
    else:
        rest = max(1, steps - TURNS * short)
        found = maximise(density.fixed(given), begin=z, starts=starts, steps=rest, progress=progress, **how)
        given = {n: v[found.start] for n, v in given.items()}
    return found, {n: v[:1] for n, v in given.items()}


@torch.no_grad()
def moved(density: Density, z: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The moved sites of every start (starts, …), each climbed by its best neighbours at its z (starts, dim)."""
    given = {n: v.clone() for n, v in given.items()}
    for k, point in enumerate(z):
        own = {n: v[k : k + 1] for n, v in given.items()}
        height = density.fixed(own)(point[None], jacobian=False)[0]
        for name, law in density.moved.items():
            for _ in range(4 * own[name].numel()):
                near = law.neighbours(own[name][0])
                if not len(near):
                    break
                heights = torch.cat([
                    density.fixed({**own, name: part})(point.expand(len(part), -1), jacobian=False)
                    for part in near.split(CHUNK)
                ])  # fmt: skip
                best = torch.nan_to_num(heights, nan=-torch.inf).argmax()
                if not heights[best] > height + 1e-6:
                    break
                own[name], height = near[best][None], heights[best]
        for name, value in own.items():
            given[name][k] = value[0]
    return given


def _read(density: Density) -> Tensor | None:
    """Labels that the last layer's gradient tells, or None where no rule applies."""
    observed, channel = density.observed, density.observed.protection.channel
    try:
        return label_recovery.recover(
            density.client, observed, sigma=observed.sigma or 0.0, public=observed.public,
            channel="gaussian" if channel is None else channel.name,
        ).labels  # fmt: skip
    except (BadInput, RuntimeError):
        return None
