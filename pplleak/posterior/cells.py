"""The cells of records: what each is taken for, how sure that is, and whether it is right.

A category is right where it is the true one, a number where it is within a tenth of its column's range
(`Column.tolerance`). The estimate of a cell is the decision for that loss: the value within whose tolerance the most
draws lie; its probability is the share of draws that agree with it. Records of no fixed order are matched to the truth
by their right cells, and each draw to the estimate in the same way: matching makes more cells right, also of a truth
that is one of the draws, and a claim that left that out would be too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pplleak.data.columns import Columns

if TYPE_CHECKING:
    from pplleak.posterior.posterior import Posterior

BINS = 10  # of a reliability diagram
PAIRS = 2**22  # of records that are compared at a time
CENTRES = 200  # values, evenly spaced in rank, at which a number's estimate is looked for


@dataclass(frozen=True, eq=False)
class Cells:
    """Of a batch of records with C cells each, on their own scale (`Columns.record`), all (batch, C):

    estimate; probability, of that it is right, and NaN of a point estimate; low and high: of the central 90 % interval
    of a number, NaN of a category; truth and right, or None where no truth is known; agreeing (draw, batch): right
    cells of every record, were the draw the truth
    """

    columns: Columns
    estimate: np.ndarray
    probability: np.ndarray
    low: np.ndarray
    high: np.ndarray
    truth: np.ndarray | None
    agreeing: np.ndarray | None

    @property
    def right(self) -> np.ndarray | None:
        return None if self.truth is None else agrees(self.columns, self.estimate, self.truth)


def columns_of(posterior: Posterior) -> Columns | None:
    """The columns of the table that was attacked; None of images."""
    kept = posterior.attrs.get("columns")
    return None if not kept else Columns.from_json(kept)


def agrees(columns: Columns, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which cells of records (…, C) count as the same."""
    tolerance = np.array([c.tolerance for c in columns.varying])
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= tolerance * (1 + 1e-9)
    return near | (np.isnan(a) & np.isnan(b))


@lru_cache(maxsize=1)  # summary, files and picture ask for those of one posterior
def cells(posterior: Posterior, columns: Columns) -> Cells:
    """What a posterior says of every cell."""
    draws = columns.record(torch.as_tensor(posterior.draws)).numpy()
    truth = None if posterior.truth is None else columns.record(torch.as_tensor(posterior.truth)).numpy()
    if posterior.kind == "point":
        estimate = columns.record(torch.as_tensor(posterior.mode)).numpy()
        probability = low = high = np.full(estimate.shape, np.nan)
        agreeing = None
    else:
        estimate = np.array([[_decided(draws[:, b, j], c.tolerance)[0] for j, c in enumerate(columns.varying)]
                             for b in range(draws.shape[1])])  # fmt: skip
        draws = aligned(columns, estimate, draws)
        right = agrees(columns, draws, estimate)
        probability, agreeing = right.mean(0), right.sum(-1)
        low, high = _intervals(draws, columns)
    if truth is not None:
        order = matched(columns, estimate, truth)
        estimate, probability, low, high = (t[order] for t in (estimate, probability, low, high))
        agreeing = None if agreeing is None else agreeing[:, order]
    return Cells(columns, estimate, probability, low, high, truth, agreeing)


def matched(columns: Columns, estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The order of the estimates with the most right cells (an assignment)."""
    if len(truth) == 1:
        return np.zeros(1, dtype=int)
    from scipy.optimize import linear_sum_assignment  # slow to import

    right = agrees(columns, estimate[:, None], truth[None]).sum(-1)
    rows, places = linear_sum_assignment(-right)
    order: np.ndarray = rows[np.argsort(places)]
    return order


def aligned(columns: Columns, estimate: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Draws (N, batch, C) of records of no fixed order, each in the order in which it would be compared with the
    estimate (batch, C), were it the truth (`matched`): what is claimed of a cell is then the chance of being right."""
    count = draws.shape[1]
    if count == 1:
        return draws
    from scipy.optimize import linear_sum_assignment  # slow to import

    made = draws.copy()
    tolerance = np.array([c.tolerance for c in columns.varying]) * (1 + 1e-9)
    for part in np.array_split(np.arange(len(draws)), max(1, len(draws) * count**2 // PAIRS)):
        right = np.zeros((len(part), count, count), dtype=np.int16)  # (draw, record of the estimate, of the draw)
        for j, slack in enumerate(tolerance):
            a, b = estimate[None, :, None, j], draws[part][:, None, :, j]
            right += (np.abs(a - b) <= slack) | (np.isnan(a) & np.isnan(b))
        for n, table in zip(part, right, strict=True):
            made[n] = draws[n][linear_sum_assignment(-table)[1]]
    return made


def _decided(draws: np.ndarray, tolerance: float) -> tuple[float, float]:
    """The value within whose tolerance the most draws lie, and their share; NaN where most draws are missing."""
    there = np.sort(draws[~np.isnan(draws)])
    missing = 1 - len(there) / len(draws)
    if not len(there):
        return np.nan, 1.0
    centres = np.unique(there)
    if len(centres) > CENTRES:
        centres = centres[np.linspace(0, len(centres) - 1, CENTRES).astype(int)]
    slack = tolerance * (1 + 1e-9)
    count = np.searchsorted(there, centres + slack, "right") - np.searchsorted(there, centres - slack, "left")
    best = np.flatnonzero(count == count.max())
    share = float(count.max()) / len(draws)
    return (np.nan, missing) if missing > share else (float(centres[best[len(best) // 2]]), share)


def _intervals(draws: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    ends = np.full((2, *draws.shape[1:]), np.nan)
    for j, column in enumerate(columns.varying):
        for b in range(draws.shape[1]):
            there = draws[:, b, j][~np.isnan(draws[:, b, j])]
            if column.numeric and len(there):
                ends[:, b, j] = np.quantile(there, [0.05, 0.95])
    return ends[0], ends[1]


def guess(columns: Columns, public: torch.Tensor) -> np.ndarray:
    """A record that saw no gradient, (C,): every column's most frequent category, and the number that the most public
    rows (N, width) are near."""
    rows = columns.record(public).numpy()
    return np.array([_decided(rows[:, j], c.tolerance)[0] for j, c in enumerate(columns.varying)])


def calibration_error(probability: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: Σ over bins of the claimed probability of their share × |claimed − right|."""
    return float(sum(abs(p - r) * n for p, r, n in reliability(probability, right)) / max(1, probability.size))


def reliability(probability: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean claimed probability, share that is right, and number, of the cells in each bin that holds some."""
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    return [
        (float(probability[bins == k].mean()), float(right[bins == k].mean()), int((bins == k).sum()))
        for k in range(BINS)
        if (bins == k).any()
    ]


def scores(posterior: Posterior, columns: Columns) -> dict[str, Any]:
    """What `summary.json` says of records in place of PSNR and SSIM.

    cell_accuracy: share of cells that are right; exact_match: of records that are right in every cell;
    guess_accuracy, guess_exact: of the guess that saw no gradient (`guess`); cell_probability: mean of what the
    posterior claims; calibration_error: of the claims; chance_exact: posterior probability that a record is right in
    every cell, mean over the batch; expected_right: right cells of a record that the posterior expects, of `cells`.
    """
    found = cells(posterior, columns)
    right, point = found.right, posterior.kind == "point"
    made: dict[str, Any] = dict.fromkeys(
        ("cell_accuracy", "exact_match", "guess_accuracy", "guess_exact", "cell_probability", "calibration_error",
         "chance_exact", "expected_right")
    )  # fmt: skip
    made["cells"] = len(columns.varying)
    if not point and found.agreeing is not None:
        made["cell_probability"] = float(found.probability.mean())
        made["chance_exact"] = float((found.agreeing == made["cells"]).mean())
        made["expected_right"] = float(found.agreeing.mean())
    if right is not None and found.truth is not None:
        made |= {"cell_accuracy": float(right.mean()), "exact_match": float(right.all(1).mean())}
        if not point:
            made["calibration_error"] = calibration_error(found.probability.ravel(), right.ravel())
        if posterior.attrs.get("guess"):
            guessed = agrees(columns, np.array(posterior.attrs["guess"], dtype=float)[None], found.truth)
            made |= {"guess_accuracy": float(guessed.mean()), "guess_exact": float(guessed.all(1).mean())}
    return made


def rows(posterior: Posterior, columns: Columns) -> list[dict[str, Any]]:
    """One row a cell, in words, as `cells.csv` has them."""
    found, made = cells(posterior, columns), []
    right = found.right
    for b in range(len(found.estimate)):
        for j, column in enumerate(columns.varying):
            interval = "" if np.isnan(found.low[b, j]) else (
                f"{column.words(found.low[b, j])} to {column.words(found.high[b, j])}")  # fmt: skip
            probability = float(found.probability[b, j])
            made.append({
                "record": b, "column": column.name,
                "truth": None if found.truth is None else column.words(found.truth[b, j]),
                "estimate": column.words(found.estimate[b, j]),
                "probability": None if np.isnan(probability) else round(probability, 4), "interval": interval,
                "right": None if right is None else bool(right[b, j]),
            })  # fmt: skip
    return made
