"""Records in the span of a first layer's gradient: each is looked for alone, and not the batch at once.

For a first layer W x + b that is fully connected, with δ_b the loss's gradient at its output for record b,

    R = [∂ℓ/∂W | ∂ℓ/∂b] = Σ_b δ_b [x_b, 1]ᵀ

and as long as the δ_b are linearly independent, which they are at most as many of as there are units, the rows of R
span the [x_b, 1], and its columns the δ_b. What the rows' span tells of a record is searched by annealing over its
categories (`pplleak.density.cell_annealing`); which numbers go with these, and which label, both spans tell
(`pplleak.density.record_span`). Records that lie in both are subtracted from R, whose rank falls by as many, and the
others are looked for in what is left. Those that are not found so are the likeliest of what was; greedy sweeps by the
likelihood mend what they can, and the sampler goes on from there.

The test of a span is that of Petrov et al. 2024 (DAGER, section 4.1), there of tokens one by one; that the records of
tables are found by annealing, and told by the span of the columns, is this file's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pplleak.density import cell_annealing, cell_starts
from pplleak.density.cell_moves import Sweep
from pplleak.density.cells import Batch, Residual, Tried
from pplleak.density.first_layer import first_layer, fully_connected
from pplleak.density.record_span import Span, deltas_of, nearest, solved
from pplleak.errors import BadInput
from pplleak.progress import ProgressBar, silent

ROUNDS = 6  # of annealing, at most, in what is left of the gradient
MORE = 12  # times as many records as are looked for, that both spans are asked about
DECIMALS = 6  # to which two records are the same
NEWTON, STEP, DAMPED = 12, 1e-4, 1e-6  # of the numbers' Gauss-Newton steps, standard deviations of a secant, a ridge
LENGTHS = (1.0, 0.5, 0.2, 0.05)  # of a step, the best of which is taken
STILL = 1e-6  # share of ‖g − u‖² that a step gains at the end
SETTLE, EVERY, MOST = 20, 3, 32  # greedy sweeps at most, those between Gauss-Newton steps, and candidates of a move
SLOW = 0.02  # share of what is left to explain, that a greedy sweep gains at least


def seen(fit: Residual, records: Any, inference: str, seed: int, progress: ProgressBar) -> list[Batch]:
    """Batches of one chain: what lies in the span and, where that does not explain the gradient, what an inference
    reads off it (`cell_starts.read`)."""
    made = read(fit, records, progress)
    if made is not None and cell_starts.explains(fit, height(fit, made)):
        return [made]
    other = cell_starts.read(fit, records, inference, seed, progress)
    return [batch for batch in (made, other) if batch is not None]


def height(fit: Residual, batch: Batch) -> float:
    """log p(g | records) of a batch of one chain, up to a constant."""
    return float(
        fit.at(fit.beside(batch, 0), batch, 0, Tried.one(batch.codes[:, 0], batch.scores[:, 0], batch.x[:, 0]))
    )


def read(fit: Residual, records: Any, progress: ProgressBar = silent) -> Batch | None:
    """A batch of one chain whose records are likeliest to be in the span; None where the first layer is another or has
    too few units, noise leaves less than the span of the batch, or the table has no categories."""
    x = in_span(fit, records, progress)
    if x is None:
        return None
    batch, sweep = _refined(fit, records, x.to(records.mean)), Sweep(records, fit, MOST, 0, greedy=True)
    state = sweep.begun(batch, 1.0)
    for k in range(SETTLE):
        if cell_starts.explains(fit, float(state.fit[0])):
            break
        new = sweep(state)
        if k % EVERY == EVERY - 1:
            again = sweep.begun(_refined(fit, records, new.batch.x[0]), 1.0)
            new = again if float(again.height[0]) > float(new.height[0]) else new
        if float(new.height[0] - state.height[0]) < SLOW * abs(float(state.fit[0])):
            break
        state = new
    return state.batch


def in_span(fit: Residual, records: Any, progress: ProgressBar = silent) -> Tensor | None:
    """The records (batch, width), float64, in the order of their labels; None as for `read`."""
    client, size = fit.density.client, fit.density.observed.batch_size
    try:
        gradient = first_layer(client, fit.density.observed.g)
        bias = client.slices[fully_connected(client)[1]]
    except BadInput:
        return None
    if size >= min(gradient.shape) or not cell_annealing.choices_of(records.columns):
        return None
    whole = span = Span.of(gradient, fit.sigma, size)
    if len(whole.s) < size:
        return None
    x = gradient.new_zeros(size, gradient.shape[1] - 1)
    left = torch.arange(size, device=gradient.device)
    filled = torch.zeros_like(left, dtype=torch.bool)
    for _ in progress("records in the span", ROUNDS):
        places, own, sure = _found(fit, records, whole, span, left, bias)
        x[places], filled[places] = own, True
        left = left[~torch.isin(left, places[sure])]
        if not len(left):
            return solved(fit, records, gradient, x, bias)
        if bool(sure.any()):  # whatever their numbers are: R without the directions of their δ
            known = [b for b in range(size) if b not in left.tolist()]
            deltas = deltas_of(fit, x, known, bias)
            span = Span.of(gradient - deltas @ (torch.linalg.pinv(deltas) @ gradient), fit.sigma, len(left))
            if len(span.s) < len(left):
                break
    return x if bool(filled.all()) else None


def _found(
    fit: Residual, records: Any, whole: Span, span: Span, left: Tensor, bias: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """For places among those `left`, all if there are as many, a record each, (places, width), and whether it is in
    both spans of the whole gradient. They are looked for by one annealing in the span of what is left of it."""
    every = cell_annealing.ends(span.beyond(span.v), records)
    every = torch.unique(every.round(decimals=DECIMALS), dim=0)  # rounding alone makes no other record
    likely = every[span.density(every).argsort(descending=True)[: MORE * len(left)]]
    made: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    labels = [str(y) for y in fit.labels[left].tolist()]
    for b, label in zip(left.tolist(), labels, strict=True):
        if label not in made:
            made[label] = nearest(fit, records, whole, span, likely, b, bias)
    x, heights, inside = (torch.stack(part) for part in zip(*(made[label] for label in labels), strict=True))
    at, picks = _pairs(heights)
    return left[at], x[at, picks], inside[at, picks]


def _pairs(heights: Tensor) -> tuple[Tensor, Tensor]:
    """Which record has which label: of heights (places, N), pairs of the largest sum, of a place and a record each."""
    from scipy.optimize import linear_sum_assignment  # where it is used: slow to import

    rows, columns = linear_sum_assignment(heights.cpu().numpy(), maximize=True)
    return torch.from_numpy(rows).to(heights.device), torch.from_numpy(columns).to(heights.device)


def _refined(fit: Residual, records: Any, x: Tensor) -> Batch:
    """The likelier of two batches of one chain: the records nearest to x (batch, width), and those nearest to x with
    the numeric entries of the least ‖g − u‖² near it. Of both, the real numbers are then those of the least ‖g − u‖²
    beside their grids: rounding a grid moves g by more than noise does, unless they make up for it."""
    columns = records.columns
    numeric = cell_annealing.numbers_of(columns).to(x.device)
    real = columns.places.to(x.device)
    made: list[tuple[float, Batch]] = []
    for entries in (real[:0], numeric):  # as x has them, and fitted
        batch = cell_starts.nearest(records, _fitted(fit, x, entries) if len(entries) else x)
        batch = cell_starts.nearest(records, _fitted(fit, batch.x[0], real)) if len(real) else batch
        made.append((height(fit, batch), batch))
        if cell_starts.explains(fit, made[-1][0]):
            break
    return max(made, key=lambda one: one[0])[1]


def _fitted(fit: Residual, x: Tensor, entries: Tensor) -> Tensor:
    """x (batch, width) with some entries of every record those of the least ‖g − u‖² near it, by Gauss-Newton on
    secants."""
    rest = fit.rest(x[None])[0]
    for _ in range(NEWTON):
        slopes = []
        for b in range(len(x)):
            tried = x[b].repeat(1 + len(entries), 1)
            tried[torch.arange(1, len(tried)), entries] += STEP
            u = fit.shared(tried, b)
            slopes.append((u[1:] - u[:1]) / STEP)
        matrix = torch.cat(slopes)
        gram = matrix @ matrix.mT
        ridge = gram.diagonal().clamp(min=1e-200)  # a number that no unit sees stays
        damped = gram + DAMPED * ridge.diag()
        step = torch.linalg.solve(damped, matrix @ rest).reshape(len(x), -1)
        moved = x.repeat(len(LENGTHS), 1, 1)
        moved[..., entries] += (step.new_tensor(LENGTHS)[:, None, None] * step).to(x)
        rests = fit.rest(moved)
        best = int(rests.square().sum(1).argmin())
        gained = 1 - float(rests[best].square().sum() / rest.square().sum())
        if not gained > 0:
            break
        x, rest = moved[best], rests[best]
        if gained < STILL:
            break
    return x
