"""How far records are from the two spans of a first layer's gradient, and the numbers for which they are nearest.

    R = Σ_b δ_b [x_b, 1]ᵀ = U S Vᵀ,    E(x) = ‖(I − V Vᵀ) [x, 1]‖²,    D(x) = ‖(I − U Uᵀ) δ(x, y)‖²

Both are 0 for the batch's own records, and for others not: a sum of records that happens to be a record, as a + b − c,
lies in the span of the rows, and its δ in no span. Noise of sd σ on R blurs the spans: E of a record in it is about
σ² (d − r) Σ_i (v_i·[x, 1] / s_i)², of d − r directions, and D likewise. The labels of two classes have δ of opposite
directions, and [x, 1]ᵀ R⁺ δ(x, y), which is 1 for a record and its label, tells them by its sign.

Of given categories, E is a Gaussian of the numbers, narrow but in the few directions that the other records make up
for. They are drawn from it (`pplleak.density.cell_blocks`), many at a time: behind rectifiers δ hardly depends on them,
but for the units that they switch. Once all δ_b are known, the numbers are, too:

    (δ_1 … δ_B)⁺ R = ([x_1, 1], …, [x_B, 1])ᵀ
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pplleak.density import cell_annealing, cell_starts
from pplleak.density.cell_blocks import Block, Form
from pplleak.density.cells import ENTRIES, Residual

CLEAR = 3.0  # times the largest singular value of the noise: directions that count as the span's
TRIED, FEWEST, MOST = 2**16, 128, 4096  # draws of numbers for all records, and for one
TELLING = 3.0  # times what noise makes of it, that E has to grow by
FAR = 1e12  # nats that a record of the wrong label is behind
INSIDE = 6.0  # standard deviations of χ² within which a record lies in both spans


@dataclass(frozen=True, eq=False)
class Span:
    """R = U S Vᵀ without what noise may have made: u (units, r), s (r,), v (width + 1, r); sigma: of the noise."""

    u: Tensor
    s: Tensor
    v: Tensor
    sigma: float

    @staticmethod
    def of(gradient: Tensor, sigma: float, most: int) -> Span:
        """Of a rank of `most`, or less where noise leaves less."""
        u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
        edge = sigma * (gradient.shape[0] ** 0.5 + gradient.shape[1] ** 0.5)
        rank = min(most, int((s > max(CLEAR * edge, 1e-12 * float(s[0]))).sum()))
        return Span(u[:, :rank], s[:rank], vh[:rank].mT, sigma)

    @staticmethod
    def beyond(basis: Tensor) -> Tensor:
        """The projection on what a basis does not span."""
        return torch.eye(len(basis), dtype=basis.dtype, device=basis.device) - basis @ basis.mT

    def off(self, a: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """‖a − P a‖² of vectors a (…, d), (…,), and Σ_i (v_i·a / s_i)², by which noise blurs it."""
        along = a @ basis
        return (a - along @ basis.mT).square().sum(-1), (along / self.s).square().sum(-1)

    def law(self, a: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, int]:
        """The log-density of ‖a − P a‖², and χ², that in units of the noise, both (…,); its degrees of freedom."""
        energy, blur = self.off(a, basis)
        variance, degrees = self.sigma**2 * blur, len(basis) - len(self.s)
        return -0.5 * (degrees * variance.log() + energy / variance), energy / variance, degrees

    def density(self, x: Tensor) -> Tensor:
        """log-density of E of records x (N, width), (N,)."""
        return self.law(_with_one(x), self.v)[0]


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x.double(), torch.ones_like(x[..., :1], dtype=torch.float64)], -1)


def delta(fit: Residual, x: Tensor, b: int, bias: slice) -> Tensor:
    """δ of records x (…, width) in place b of the batch, (…, units), float64."""
    update = fit.update(x.flatten(0, -2).to(fit.density.client.dtype), b)
    return (fit.weight(b) * update.part(bias).double()).unflatten(0, x.shape[:-1])


def deltas_of(fit: Residual, x: Tensor, places: list[int], bias: slice) -> Tensor:
    """δ of the records x (batch, width) in some places, side by side, (units, places)."""
    return torch.stack([delta(fit, x[b : b + 1], b, bias)[0] for b in places], 1)


def nearest(
    fit: Residual, records: Any, whole: Span, left: Span, x: Tensor, b: int, bias: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Records x (N, width), where E is least, in place b of the batch, with numbers for which they are nearest to both
    spans; the log-density of how far they are, (N,), and whether noise alone is as far, (N,).

    Args:
        whole: of R. left: of what is left of it, in whose rows x were found.
    """
    count = min(MOST, max(FEWEST, TRIED // len(x)))
    parts = x.split(max(1, ENTRIES // (count * x.shape[1])))
    found, heights, inside = zip(*(_best(fit, whole, left, _tried(records, left, p, count), b, bias) for p in parts),
                                 strict=True)  # fmt: skip
    return torch.cat(found), torch.cat(heights), torch.cat(inside)


def _best(fit: Residual, whole: Span, left: Span, tried: Tensor, b: int, bias: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Of records tried (N, K, width) the nearest to both spans, as `nearest` gives them."""
    one, deltas = _with_one(tried), delta(fit, tried, b, bias)
    rows, columns = left.law(one, left.v), whole.law(deltas, whole.u)
    height, chi2, degrees = rows[0] + columns[0], rows[1] + columns[1], rows[2] + columns[2]
    ours = (((one @ whole.v) / whole.s) * (deltas @ whole.u)).sum(-1) > 0
    height, at = torch.where(ours, height, height - FAR).max(1)
    own = torch.arange(len(at), device=at.device)
    inside = ours[own, at] & (chi2[own, at] < degrees + INSIDE * math.sqrt(2 * degrees))
    return tried[own, at], height, inside


def solved(fit: Residual, records: Any, gradient: Tensor, x: Tensor, bias: slice) -> Tensor:
    """The records x (batch, width), all of a batch, with the numbers that all of their δ together give them."""
    numbers = cell_annealing.numbers_of(records.columns).to(x.device)
    rows = torch.linalg.pinv(deltas_of(fit, x, list(range(len(x))), bias)) @ gradient
    x = x.clone()
    x[:, numbers] = (rows[:, :-1] / rows[:, -1:])[:, numbers]
    return x


def _tried(records: Any, span: Span, x: Tensor, count: int) -> Tensor:
    """Records x (N, width) as they are, and with numbers drawn from the Gaussian that E is of them, (N, 2 + count,
    width): one has them on the grid.

    Noise makes E grow even along a direction n of the span, by σ² (d − r) Σ_i (v_i·n / s_i)², as the blur does: that
    much says nothing, and where it is most of E the prior alone is drawn from.
    """
    block = Block.of(records)
    if not len(block.entries):
        return x[:, None]
    codes, scores = cell_starts.rounded(records, x.to(records.mean))
    directions, scaled = len(span.v) - len(span.s), span.v / span.s
    noise = span.sigma**2 * directions * scaled @ scaled.mT
    outside = span.beyond(span.v)
    numbers = cell_annealing.numbers_of(records.columns).to(x.device)
    values, vectors = torch.linalg.eigh(outside[numbers[:, None], numbers])
    blurred = (vectors * (noise[numbers[:, None], numbers] @ vectors)).sum(0)
    told = values > TELLING * blurred
    values, vectors = (values - blurred)[told], vectors[:, told]
    spread = span.sigma**2 * span.off(_with_one(x), span.v)[1][:, None]
    form, slopes = x.new_zeros(x.shape[1], x.shape[1]), torch.zeros_like(x)
    form[numbers[:, None], numbers] = (vectors * values) @ vectors.mT
    slopes[:, numbers] = -(_with_one(x) @ (outside - noise))[:, numbers] @ vectors @ vectors.mT / spread
    law = Form(x, slopes, form / spread[..., None])
    tried, each, _ = block.drawn(records, law, 1.0, 1 + count, codes, scores, x)
    return torch.cat([x[:, None], records.decode(tried, each).flatten(2).double()], 1)
