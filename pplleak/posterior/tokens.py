"""The tokens of sentences: what each is taken for, how sure that is, and whether it is right.

The estimate of a token is what most draws have at its position; its probability is their share. Sentences of no fixed
order are matched to the truth by their right tokens. ROUGE is that of the package `rouge_score`, on the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pplleak.data.vocabulary import END, SPECIAL, Vocabulary
from pplleak.posterior.cells import calibration_error

if TYPE_CHECKING:
    from pplleak.posterior.posterior import Posterior

ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True, eq=False)
class Tokens:
    """Of a batch of sentences, all (batch, length), ids: estimate; probability, of that each token is right, NaN of a
    point estimate; truth, or None where none is known."""

    vocabulary: Vocabulary
    estimate: np.ndarray
    probability: np.ndarray
    truth: np.ndarray | None

    @property
    def shown(self) -> np.ndarray:
        """Which positions hold a token of the estimate's own, or the truth's."""
        own: np.ndarray = self.estimate >= len(SPECIAL)
        return own if self.truth is None else own | (self.truth >= len(SPECIAL))

    @property
    def right(self) -> np.ndarray | None:
        return None if self.truth is None else self.estimate == self.truth

    def sentence(self, ids: np.ndarray) -> str:
        return " ".join(self.vocabulary.words(ids))


def vocabulary_of(posterior: Posterior) -> Vocabulary | None:
    """The vocabulary of the sentences that were attacked; None of images and records."""
    kept = posterior.attrs.get("vocabulary")
    return None if not kept else Vocabulary(tuple(map(str, kept)))


def order(ids: np.ndarray, like: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """The order of sentences ids (B, length) in which most tokens are those of others (B, length); where labels (B,)
    are given, sentences of one label alone change places."""
    if len(ids) == 1:
        return np.zeros(1, dtype=int)
    from scipy.optimize import linear_sum_assignment  # slow to import

    agree = ((ids[:, None] == like[None]) & (like >= len(SPECIAL))[None]).sum(-1)
    if labels is not None:
        agree = np.where(labels[:, None] == labels[None], agree, -ids.size)
    rows, places = linear_sum_assignment(-agree)
    made: np.ndarray = rows[np.argsort(places)]
    return made


@lru_cache(maxsize=1)  # summary, files and picture ask for those of one posterior
def tokens(posterior: Posterior, vocabulary: Vocabulary) -> Tokens:
    """What a posterior says of every token."""
    mode = posterior.mode.round().astype(int)
    truth = None if posterior.truth is None else posterior.truth.round().astype(int)
    if posterior.kind == "point":
        estimate, probability = mode, np.full(mode.shape, np.nan)
    else:
        draws = np.stack([d[order(d, mode)] for d in posterior.draws.round().astype(int)])
        estimate, probability = _decided(draws)
    if truth is not None:
        places = order(estimate, truth)
        estimate, probability = estimate[places], probability[places]
    return Tokens(vocabulary, estimate, probability, truth)


def _decided(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent id at each position of draws (draw, B, length), and its share. A sentence ends where most of
    the draws have ended."""
    estimate, share = (np.zeros(draws.shape[1:], dtype=t) for t in (int, float))
    for place in np.ndindex(draws.shape[1:]):
        values, counts = np.unique(draws[:, *place], return_counts=True)
        estimate[place], share[place] = values[counts.argmax()], counts.max() / len(draws)
    return estimate, share


def rouge(vocabulary: Vocabulary, estimate: np.ndarray, truth: np.ndarray) -> dict[str, list[float]]:
    """F₁ of ROUGE-1, -2 and -L of every sentence, of ids (batch, length)."""
    from rouge_score import rouge_scorer  # slow to import

    scorer = rouge_scorer.RougeScorer(list(ROUGE), tokenizer=_Ids())
    scored = [
        scorer.score(*(" ".join(str(i) for i in ids if i >= len(SPECIAL)) for ids in (true, own)))
        for own, true in zip(estimate, truth, strict=True)
    ]
    return {name: [float(s[name].fmeasure) for s in scored] for name in ROUGE}


def guess(public: torch.Tensor) -> np.ndarray:
    """The sentence that saw no gradient, ids (length,): of public sentences (N, length), the most frequent word at each
    position; [PAD] where no sentence has one."""
    ids = public.long().cpu().numpy()
    made = np.zeros(ids.shape[1], dtype=int)
    for place, own in enumerate(ids.T):
        values, counts = np.unique(own[own >= len(SPECIAL)], return_counts=True)
        if len(values):
            made[place] = values[counts.argmax()]
    return made


class _Ids:
    """rouge_score's tokenizer of sentences that are ids already."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def scores(posterior: Posterior, vocabulary: Vocabulary) -> dict[str, Any]:
    """What `summary.json` says of sentences in place of PSNR and SSIM.

    token_accuracy: share of the true tokens that are right, each at its position; guess_accuracy: the same of the guess
    that saw no gradient (`guess`); exact_match: share of sentences that are right in every token; rouge1,
    rouge2, rougeL: F₁, mean over the batch; token_probability: mean of what the posterior claims of its tokens;
    calibration_error: of the claims; tokens_named: the tokens that rows of the table of embeddings name,
    tokens_named_exactly whether no noise blurs that, both None where the table is not shared; sentences: each with its
    tokens' probabilities.
    """
    found = tokens(posterior, vocabulary)
    right, point, own = found.right, posterior.kind == "point", found.estimate >= len(SPECIAL)
    names = ("token_accuracy", "guess_accuracy", "exact_match", *map(str.lower, ROUGE), "token_probability",
             "calibration_error")  # fmt: skip
    made: dict[str, Any] = dict.fromkeys(names)
    if not point and own.any():
        made["token_probability"] = float(found.probability[own].mean())
    if right is not None and found.truth is not None:
        true = found.truth >= len(SPECIAL)
        made |= {"token_accuracy": float(right[true].mean()), "exact_match": float(right.all(1).mean())}
        if posterior.attrs.get("guess"):
            made["guess_accuracy"] = float((np.array(posterior.attrs["guess"])[None] == found.truth)[true].mean())
        made |= {n.lower(): float(np.mean(v)) for n, v in rouge(vocabulary, found.estimate, found.truth).items()}
        if not point and own.any():
            made["calibration_error"] = calibration_error(found.probability[own], right[own])
    made |= {n: posterior.attrs.get(n) for n in ("tokens_named", "tokens_named_exactly")}
    return made | {"sentences": said(found)}


def said(found: Tokens) -> list[dict[str, Any]]:
    """Every sentence in words, with its tokens' probabilities and, where it is known, the truth."""
    return [
        {
            "estimate": found.sentence(ids),
            "truth": None if found.truth is None else found.sentence(found.truth[b]),
            "probabilities": [round(float(p), 4) for p in found.probability[b][ids >= len(SPECIAL)] if p == p],
        }
        for b, ids in enumerate(found.estimate)
    ]


def rows(posterior: Posterior, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """One row a token, as `tokens.csv` has them."""
    found, made = tokens(posterior, vocabulary), []
    for b, i in zip(*np.nonzero(found.shown), strict=True):
        probability, truth = float(found.probability[b, i]), None if found.truth is None else int(found.truth[b, i])
        estimate = int(found.estimate[b, i])
        made.append({
            "sentence": int(b), "position": int(i), "truth": None if truth is None else _word(vocabulary, truth),
            "estimate": _word(vocabulary, estimate),
            "probability": None if np.isnan(probability) else round(probability, 4),
            "right": None if truth is None else estimate == truth,
        })  # fmt: skip
    return made


def _word(vocabulary: Vocabulary, token: int) -> str:
    """A token in words; "" behind a sentence's end."""
    return vocabulary.tokens[token] if token >= len(SPECIAL) else ""


def spread(draws: Sequence[np.ndarray] | np.ndarray) -> float:
    """√ of the chance that two draws (draw, B, length) differ at a position, mean over those at which any has a token:
    what the standard deviation is of a one-hot token."""
    ids = np.asarray(draws).round().astype(int)
    chances = []
    for b, i in np.ndindex(ids.shape[1:]):
        values, counts = np.unique(ids[:, b, i], return_counts=True)
        if (values >= len(SPECIAL)).any() or END in values:
            chances.append(1 - float(np.square(counts / len(ids)).sum()))
    return float(np.sqrt(np.mean(chances))) if chances else 0.0
