"""Records in the span of a first layer's gradient: each is looked for alone, and not the batch at once.

For a first layer W x + b that is fully connected, with δ_b the loss's gradient at its output for record b,

    R = [∂ℓ/∂W | ∂ℓ/∂b] = Σ_b δ_b [x_b, 1]ᵀ

and as long as the δ_b are linearly independent, which they are at most as many of as there are units, the rows of R
span the [x_b, 1]. Few other records lie there: categories are of {0, 1}, and 0 is the least value of

    E(x) = ‖(I − P) [x, 1]‖²,    P the projection on the span

a quadratic form in x, whose minimum over the numeric entries at given categories is one in these alone. It is looked
for by annealing over the categories, thousands of draws from the prior at once. Noise of sd σ blurs the span, and E of
a record in it is about σ² (d − B) Σ_i (v_i·[x, 1] / s_i)², R = U S Vᵀ: the batch's records are those of the highest
density of their E. Their labels, and their numbers, which the span alone tells roughly, are those for which

    [x_a, 1]ᵀ R⁺ δ(x_b, y_b) = 1 for a = b, and 0 otherwise

(for R⁺ δ_b is the dual of [x_b, 1]). Of a batch of nearly as many records as there are units, some are missed or mixed
up: greedy sweeps by the likelihood mend what they can, and the sampler goes on from there.

The test of a span is that of Petrov et al. 2024 (DAGER, section 4.1), there of tokens one by one; that the records of
tables are found by annealing, and their numbers by the dual, is this file's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pplleak.data.columns import Columns
from pplleak.density import cell_starts
from pplleak.density.cell_moves import Sweep
from pplleak.density.cells import Batch, Residual, Tried
from pplleak.density.first_layer import first_layer, fully_connected
from pplleak.errors import BadInput
from pplleak.progress import ProgressBar

STARTS, SWEEPS = 4096, 40  # of an annealing, and visits to every column in it
HOT, COLD = 0.5, 1e-3  # temperatures, in units of E, in which one category for another is about 1
ROUNDS = 6  # of annealing, at most: they end when another one finds no better records
SURE = 3.0  # times the largest singular value of the noise: directions that count as the span's
DECIMALS = 6  # to which two records are the same
FARTHEST = 5.0  # from the 1 of its dual, from which on a label is as wrong as any
DUALS, ROBUST, TEST = 6, 20, 3e-3  # rounds of duals; of re-weighted least squares, and deviations that count as squares
NEWTON, STEP, DAMPED = 12, 1e-4, 1e-6  # of the numbers' Gauss-Newton steps, standard deviations of a secant, a ridge
LENGTHS = (1.0, 0.5, 0.2, 0.05)  # of a step, the best of which is taken
SETTLE, EVERY, MOST = 20, 3, 32  # greedy sweeps at most, those between Gauss-Newton steps, and candidates of a move
SLOW = 0.02  # share of what is left to explain, that a greedy sweep gains at least


@dataclass(frozen=True, eq=False)
class Span:
    """R = U S Vᵀ without what noise may have made: u (units, r), s (r,), v (width + 1, r)."""

    u: Tensor
    s: Tensor
    v: Tensor

    @staticmethod
    def of(gradient: Tensor, sigma: float, most: int) -> Span:
        u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
        edge = sigma * (gradient.shape[0] ** 0.5 + gradient.shape[1] ** 0.5)
        rank = min(most, int((s > max(SURE * edge, 1e-12 * float(s[0]))).sum()))
        return Span(u[:, :rank], s[:rank], vh[:rank].mT)

    def ranks(self, x: Tensor, deltas: Tensor) -> Tensor:
        """[x, 1]ᵀ R⁺ δ of records x (N, width) and δ (N, units), (N,)."""
        return (((_with_one(x) @ self.v) / self.s) * (deltas @ self.u)).sum(-1)

    def outside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E of records x (N, width), (N,); and what Σ_i (v_i·[x, 1] / s_i)² is, by which noise blurs it."""
        one = _with_one(x)
        along = one @ self.v
        return (one - along @ self.v.mT).square().sum(-1), (along / self.s).square().sum(-1)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x.double(), torch.ones_like(x[..., :1], dtype=torch.float64)], -1)


def seen(fit: Residual, records: Any, inference: str, seed: int, progress: ProgressBar) -> list[Batch]:
    """Batches of one chain: what an inference reads off the gradient (`cell_starts.read`) and, where that does not
    explain it, what lies in the span."""
    made = cell_starts.read(fit, records, inference, seed, progress)
    if made is not None and cell_starts.explains(fit, height(fit, made)):
        return [made]
    return [batch for batch in (made, read(fit, records)) if batch is not None]


def height(fit: Residual, batch: Batch) -> float:
    """log p(g | records) of a batch of one chain, up to a constant."""
    return float(
        fit.at(fit.beside(batch, 0), batch, 0, Tried.one(batch.codes[:, 0], batch.scores[:, 0], batch.x[:, 0]))
    )


def read(fit: Residual, records: Any) -> Batch | None:
    """A batch of one chain whose records are likeliest to be in the span; None where the first layer is another or has
    too few units, noise leaves less than the span of the batch, or the table has no categories."""
    client, observed = fit.density.client, fit.density.observed
    size = observed.batch_size
    try:
        gradient = first_layer(client, observed.g)
        bias = client.slices[fully_connected(client)[1]]
    except BadInput:
        return None
    choices = _choices(records.columns)
    span = Span.of(gradient, fit.sigma, size)
    if size >= min(gradient.shape) or len(span.s) < size or not choices:
        return None
    every, chosen = _ends(span, records, choices), None
    for _ in range(ROUNDS):
        every = torch.unique(every.round(decimals=DECIMALS), dim=0)  # rounding alone makes no other record
        best = every[_score(span, fit.sigma, every).argsort(descending=True)[:size]]
        if chosen is not None and torch.equal(best, chosen):
            break
        chosen, every = best, torch.cat([every, _ends(span, records, choices)])
    if chosen is None or len(chosen) < size:
        return None
    x = chosen[_places(fit, span, chosen, bias)]
    x = _dual(fit, span, x, records.columns, bias)
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


def _score(span: Span, sigma: float, x: Tensor) -> Tensor:
    """log of the density of E, of what noise of this blur leaves in the directions that are not the span's."""
    energy, blur = span.outside(x)
    variance = sigma**2 * blur
    return -0.5 * (len(span.v) - len(span.s)) * variance.log() - 0.5 * energy / variance


def _places(fit: Residual, span: Span, x: Tensor, bias: slice) -> Tensor:
    """Which of the records x (batch, width) has which label: an order (batch,) in which the test by rank goes best."""
    from scipy.optimize import linear_sum_assignment  # where it is used: slow to import

    like = fit.density.client.dtype
    ranks = torch.stack([span.ranks(x, fit.weight(b) * fit.update(x.to(like), b).part(bias).double())
                         for b in range(len(x))])  # fmt: skip
    return torch.from_numpy(linear_sum_assignment((ranks - 1).abs().clamp(max=FARTHEST).cpu().numpy())[1])


def _dual(fit: Residual, span: Span, x: Tensor, columns: Columns, bias: slice) -> Tensor:
    """The records x (batch, width) with numeric entries for which [x_a, 1]ᵀ R⁺ δ_b is the identity, by least absolute
    deviations: of a record that is none of the batch's, its column is wrong in all rows."""
    numeric = torch.tensor([columns.starts[c.name] for c in columns.varying if c.numeric], device=x.device)
    like, size = fit.density.client.dtype, len(x)
    one = torch.eye(size, dtype=torch.float64, device=x.device)
    outside = torch.eye(len(span.v), dtype=torch.float64, device=x.device) - span.v @ span.v.mT
    for _ in range(DUALS):
        deltas = torch.stack([fit.weight(b) * fit.update(x[b : b + 1].to(like), b).part(bias)[0].double()
                              for b in range(size)])  # fmt: skip
        dual = span.v @ ((deltas @ span.u) / span.s).mT  # (width + 1, batch)
        spread = (fit.sigma**2 * span.outside(x)[1]).sqrt()
        off = _with_one(x) @ dual - one
        x = x.clone()
        for a in range(size):
            matrix = torch.cat([dual[numeric].mT, outside[:, numeric]])
            moved = x[a, numeric]
            wanted = torch.cat([-off[a], -(outside @ _with_one(x[a]))])
            step = torch.zeros_like(moved)
            for _ in range(ROBUST):
                miss = (matrix @ step - wanted).abs()
                weight = 1 / torch.cat([TEST * (TEST + miss[:size]), (spread[a] ** 2).expand(len(outside))])
                weighted = matrix.mT * weight
                step = torch.linalg.lstsq(weighted @ matrix, weighted @ wanted).solution
            x[a, numeric] = moved + step
    return x


def _refined(fit: Residual, records: Any, x: Tensor) -> Batch:
    """The records nearest to x (batch, width) once its numeric entries are those of the least ‖g − u‖² near it, by
    Gauss-Newton on secants."""
    columns = records.columns
    numeric = [columns.starts[c.name] for c in columns.varying if c.numeric]
    g, size = fit.density.observed.g.double(), len(x)

    def shared(x: Tensor) -> Tensor:
        each = [fit.weight(b) * fit.update(x[b : b + 1], b).materialise().double()[0] for b in range(size)]
        return torch.stack(each).sum(0)

    rest = g - shared(x)
    for _ in range(NEWTON):
        slopes = []
        for b in range(size):
            tried = x[b].repeat(1 + len(numeric), 1)
            for k, i in enumerate(numeric):
                tried[1 + k, i] += STEP
            u = fit.weight(b) * fit.update(tried, b).materialise().double()
            slopes.append((u[1:] - u[:1]) / STEP)
        matrix = torch.cat(slopes)
        gram = matrix @ matrix.mT
        damped = gram + DAMPED * gram.diagonal().diag()
        step = torch.linalg.solve(damped, matrix @ rest).reshape(size, -1)
        tries = []
        for length in LENGTHS:
            moved = x.clone()
            moved[:, numeric] += (length * step).to(x)
            tries.append((moved, g - shared(moved)))
        best = min(tries, key=lambda one: float(one[1].square().sum()))
        if not best[1].square().sum() < rest.square().sum():
            break
        x, rest = best
    codes, found = columns.decode(x)
    scores = records.scores(found).clamp(records.knots[0], records.knots[-1]) if found.shape[-1] else found
    return Batch(codes[None], scores[None], records.decode(codes, scores).flatten(1)[None])


def _choices(columns: Columns) -> list[tuple[Tensor, Tensor]]:
    """What is looked through: entries (w,) of x and the values (states, w) that they may have together, of each
    category and of each flag that a number is missing."""
    made = []
    for column in columns.finite:
        start = columns.starts[column.name]
        if column.kind == "categorical":
            made.append((torch.arange(start, start + column.width), column.rows()))
        elif column.missing:
            made.append((torch.tensor([start + 1]), torch.tensor([[0.0], [1.0]], dtype=torch.float64)))
    return made


def _ends(span: Span, records: Any, choices: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Where annealing over the categories ends, each record once, (N, width): numeric entries as E has them least."""
    width = len(span.v) - 1
    outside = torch.eye(width + 1, dtype=torch.float64, device=span.v.device) - span.v @ span.v.mT
    words = torch.cat([entries for entries, _ in choices]).to(span.v.device)
    kept = torch.cat([words, words.new_tensor([width])])
    numeric = torch.ones(width, dtype=torch.bool)
    numeric[words.cpu()] = False
    numbers = numeric.nonzero().flatten().to(span.v.device)
    # the least over the numeric entries z at given categories c: z = −Q_zz⁺ Q_zc c
    solved = -torch.linalg.pinv(outside[numbers[:, None], numbers], hermitian=True) @ outside[numbers[:, None], kept]
    form = outside[kept[:, None], kept] + outside[kept[:, None], numbers] @ solved

    x = cell_starts.drawn(records, STARTS, 1).x[:, 0].double()
    c = torch.cat([x[:, words], x.new_ones(len(x), 1)], 1)
    pull, at = c @ form, 0
    blocks = []
    for entries, rows in choices:
        own = slice(at, at + len(entries))
        rows, at = rows.to(c), at + len(entries)
        blocks.append((own, rows, rows @ form[own, own] @ rows.mT, (c[:, own, None] - rows.mT).abs().sum(1).argmin(1)))
    states = [state for *_, state in blocks]
    for temperature in torch.logspace(math.log10(HOT), math.log10(COLD), SWEEPS).tolist():
        for k in torch.randperm(len(blocks)).tolist():
            own, rows, mixed, _ = blocks[k]
            now, along = states[k], pull[:, own] @ rows.mT
            rise = 2 * along + mixed.diagonal() - 2 * mixed[now]  # of E, up to what is the same for all states
            noise = -torch.empty_like(rise).exponential_().log()
            new = (noise - rise / temperature).argmax(1)
            states[k], pull = new, pull + (rows[new] - rows[now]) @ form[own]
    c = torch.cat([*(rows[state] for (_, rows, _, _), state in zip(blocks, states, strict=True)), c[:, -1:]], 1)
    c = torch.unique(c, dim=0)
    x = c.new_zeros(len(c), width)
    x[:, words], x[:, numbers] = c[:, :-1], c @ solved.mT
    return x
