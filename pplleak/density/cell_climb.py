"""A maximum of log p(records | g): the codes by greedy sweeps, the scores by Adam, in turns.

A sweep visits every record in all starts at once and takes the best of each move's candidates, where the sampler draws
one (`pplleak.density.cell_moves`); no start ever falls by more than rounding (Besag 1986, iterated conditional modes).
It begins where the sampler begins: draws from the prior settled, the ends of a relaxed climb, and what is read off the
first layer (`pplleak.density.cell_starts`, `pplleak.density.cell_spans`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pplleak.density import cell_spans, cell_starts
from pplleak.density.cell_moves import Chains, Sweep
from pplleak.density.cells import Batch, Residual, likelihood
from pplleak.density.density import Density
from pplleak.density.search import Maximum, maximise
from pplleak.progress import ProgressBar, silent

TURNS = 3  # of sweeps and a climb of the scores
SWEEPS = 12  # of a turn, at most
STILL = 1e-3  # nats that a sweep gains in no start at the end
RELAXED = 300  # steps of the relaxed climb
FAR = 300.0  # nats below the best end, at which a start is given up
READ = "spear"  # reads records off the first layer
MOST = 32  # candidates that a move compares


def climb(
    density: Density, records: Any, *, starts: int, steps: int, seed: int = 0,
    progress: ProgressBar = silent, **how: Any,
) -> tuple[Maximum, dict[str, Tensor]]:  # fmt: skip
    """The ends of all starts, best first, and the codes (1, batch, F) of the best; as `pplleak.density.moves.climb`.

    Args:
        how: settings of `maximise`.
    """
    with torch.no_grad():
        begun = cell_starts.drawn(records, starts, density.observed.batch_size)
        fit = likelihood(density, begun)
        if isinstance(fit, Residual):
            seen = cell_spans.seen(fit, records, READ, seed, progress)
            more = cell_starts.climbed(fit, records, starts, RELAXED, progress)
            begun = cell_starts.joined([begun, more, *seen])
    sweep = Sweep(records, fit, MOST, 0, greedy=True)
    short = max(1, steps // TURNS)
    with torch.no_grad():
        state = sweep.begun(begun, 1.0)
    for _ in progress("turns", TURNS):
        state = _swept(sweep, state)
        given = {"codes": state.batch.codes} if records.forest is not None else {}
        z = state.batch.scores.flatten(1)
        found = maximise(density.fixed(given), begin=z, starts=len(z), steps=short, **how)
        with torch.no_grad():
            scores = found.z.unflatten(1, state.batch.scores.shape[1:])
            codes = state.batch.codes[found.start]
            batch = Batch(codes, scores, records.decode(codes, scores).flatten(2))
            state = sweep.begun(batch.picked((found.value > found.value[0] - FAR).nonzero().flatten()), 1.0)
        if found.interrupted:
            break
    return found, {n: v[found.start][:1] for n, v in given.items()}


@torch.no_grad()
def _swept(sweep: Sweep, state: Chains) -> Chains:
    for _ in range(SWEEPS):
        new = sweep(state)
        risen = float((new.height - state.height).max())
        state = new
        if risen < STILL:
            break
    return state
