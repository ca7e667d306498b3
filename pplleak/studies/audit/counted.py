"""What is counted of records and of sentences, where PSNR is of images: cells, and tokens, that are right.

A guess that needs no update names every column's most frequent value, or the most frequent word at each place of a
sentence (`cells.guess`, `tokens.guess`). An attack is measured by the errors that it leaves of those that the guess
makes; few cells can also be right by luck, and

    luck = P(the guess is right in as large a share of a batch of public rows)

estimated on batches drawn from those, is the chance that who saw no update does as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplleak.data import Columns, Vocabulary
from pplleak.data.vocabulary import SPECIAL
from pplleak.density import embedding_rows
from pplleak.errors import BadInput, printable
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, cells, tokens

Row = dict[str, Any]
COLUMNS = {
    "unit": str, "units": int | None, "right": int | None, "guess_right": int | None, "luck": float | None,
    "whole": int | None, "claimed": float | None, "named": int | None, "named_right": float | None,
}  # fmt: skip
CELLS, TOKENS = "cells", "tokens"
THINGS = {CELLS: "record", TOKENS: "sentence"}  # that a unit is a part of
BATCHES = 4000  # of public rows, that luck is counted on
DOUBT = 1e-3  # expected number of rows that noise makes look like others, below which they name beyond doubt
UNLIKELY = 0.05  # luck below which a number of right cells says something


def discrete(observed: Observation) -> bool:
    """Whether an observation is of records or of sentences."""
    return observed.client.columns is not None or observed.client.vocabulary is not None


def counts(posterior: Posterior) -> bool:
    """Whether a result is of records or of sentences."""
    return cells.columns_of(posterior) is not None or tokens.vocabulary_of(posterior) is not None


def require(x: Tensor, observed: Observation, where: str) -> None:
    """Raise BadInput for a private batch x (B, *input_shape) that is not what the named data encode.

    A client that encodes its table in a way of its own shares something else, and an attack on the wrong encoding that
    finds nothing would look like privacy.
    """
    columns, vocabulary = observed.client.columns, observed.client.vocabulary
    if columns is not None:
        again = columns.encode(*columns.decode(x.double()))
        if not torch.allclose(again, x.double(), rtol=1e-3, atol=1e-3):
            raise BadInput(f"{printable(where)} holds inputs that are no rows as the named table encodes them: train "
                           "the client on what pplleak.data.private(FILE.csv) gives, and name that file")  # fmt: skip
    if vocabulary is not None:
        strange = (x != x.round()) | (x < 0) | (x >= len(vocabulary))
        if bool(strange.any()):
            raise BadInput(f"{printable(where)} holds inputs that are no token ids of the named text")


def named(observed: Observation) -> Row:
    """Of text: how many tokens the rows of the embeddings' gradient name beyond doubt, and, with the truth, the share
    of those that it has or that are named which is both; nothing where noise leaves room for doubt."""
    found = embedding_rows.named(observed)
    if found is None or found.tied or float((-found.log_odds.abs()).exp().sum()) > DOUBT:
        return {}
    row: Row = {"named": len(found.tokens)}
    if observed.truth is not None:
        true = {int(i) for i in observed.truth.long().flatten() if int(i) >= len(SPECIAL)}
        row["named_right"] = len(true & set(found.tokens)) / max(1, len(true | set(found.tokens)))
    return row


def scores(posterior: Posterior, public: Tensor | None = None) -> Row:
    """The columns of a result that is of records or of sentences; {} of images.

    unit: cells or tokens; units: how many there are; right: of these, and guess_right: of those of the guess; whole:
    records or sentences without an error; claimed: mean probability of a unit. None without truth or probability.
    """
    columns, vocabulary = cells.columns_of(posterior), tokens.vocabulary_of(posterior)
    if columns is None and vocabulary is None:
        return {}
    if columns is not None:
        of_cells = cells.cells(posterior, columns)
        right, claims, there = of_cells.right, of_cells.probability, np.ones(of_cells.estimate.shape, bool)
        truth = of_cells.truth
    else:
        assert vocabulary is not None
        of_tokens = tokens.tokens(posterior, vocabulary)
        right, claims, truth = of_tokens.right, of_tokens.probability, of_tokens.truth
        there = (of_tokens.estimate if truth is None else truth) >= len(SPECIAL)
    row: Row = {"unit": TOKENS if columns is None else CELLS, "units": int(there.sum())}
    if posterior.kind != "point" and there.any():
        row["claimed"] = float(claims[there].mean())
    if right is None or truth is None:
        return row
    row |= {"right": int(right[there].sum()), "whole": int(right.all(1).sum())}
    guess = posterior.attrs.get("guess")
    if guess:
        own, _ = _agreeing(np.array(guess, float), truth, columns, vocabulary)
        row["guess_right"] = int(own.sum())
        if public is not None and row["units"]:
            row["luck"] = luck(row["right"] / row["units"], guess, public, len(truth), columns, vocabulary)
    return row


def luck(
    share: float, guess: Any, public: Tensor, batch: int, columns: Columns | None, vocabulary: Vocabulary | None
) -> float:
    """The chance that a guess is right in at least `share` of the cells of `batch` rows, were they public ones
    (N, *input_shape); (1 + hits) / (1 + batches), which is never 0."""
    rows = public if columns is None else columns.record(public)
    own, of = _agreeing(np.array(guess, float), rows.cpu().numpy(), columns, vocabulary)
    draws = np.random.default_rng(0).integers(len(own), size=(BATCHES, batch))
    reached = own[draws].sum(1) / np.maximum(of[draws].sum(1), 1)
    return float((1 + (reached >= share - 1e-9).sum()) / (1 + BATCHES))


def _agreeing(
    guess: np.ndarray, truth: np.ndarray, columns: Columns | None, vocabulary: Vocabulary | None
) -> tuple[np.ndarray, np.ndarray]:
    """How many cells of each row a guess has right, (N,), and how many it has, (N,)."""
    if columns is not None:
        return cells.agrees(columns, guess[None], truth).sum(-1), np.full(len(truth), truth.shape[1])
    there = truth >= len(SPECIAL)
    return ((guess[None] == truth) & there).sum(-1), there.sum(-1)


def gain(row: Mapping[str, Any]) -> float | None:
    """The share of the guess's errors that an attack is without, at most 1; None where that could be luck, or cannot
    be said."""
    if row.get("right") is None or row.get("guess_right") is None or row["units"] <= row["guess_right"]:
        return None
    if row["luck"] is None or row["luck"] > UNLIKELY:
        return None
    return 1 - float((row["units"] - row["right"]) / (row["units"] - row["guess_right"]))


def said(row: Mapping[str, Any]) -> str:
    """A result in words: "12 of 13 cells are right, claimed at 94 % on average; a guess has 7"."""
    unit = row["unit"]
    claims = "" if row["claimed"] is None else f"claimed at {row['claimed']:.0%} on average"
    if row["right"] is None:
        return f"its {row['units']} {unit} are {claims}" if claims else ""
    words = f"{row['right']} of {row['units']} {unit} are right"
    words += f", {claims}" if claims else ""
    return words + ("" if row["guess_right"] is None else f"; a guess without the update has {row['guess_right']}")


def worst(rows: list[Row]) -> Row | None:
    """The row that shows the most: the largest share that is right, else the surest; None of images."""
    found = [r for r in rows if r["unit"] and r["units"]]
    if not found:
        return None
    return max(found, key=lambda r: ((r["right"] or 0) / r["units"], r["claimed"] or 0.0))
