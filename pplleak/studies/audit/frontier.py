"""What would protect: the same private batches shared anew behind each protection, what attacks then see of them, and
what the protection costs.

What it costs is accuracy, where every protection was trained behind (`utility`). Where not, it is what the protection
takes from the update itself: the cosine between what the server gets and what the client computed, 1 for an update that
arrives as it was.

What is seen of images is how much nearer than a guess the nearest one comes, dB, on average over the updates. Of
records and sentences it is the share of the guess's errors that attacks are without, over the units (cells or tokens)
of all n updates, with the standard error of a ratio (Cochran 1977, Sampling Techniques, section 6.4):

    R = Σ_i a_i / Σ_i b_i,   a_i = right_i − guess_i of the best attack on update i,   b_i = units_i − guess_i
    se(R) = √(n/(n − 1) Σ_i (a_i − R b_i)²) / Σ_i b_i
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Row = Mapping[str, Any]
RECORDED = "as recorded"
MOST = 30.0  # dB above a guess: as good as exact, and more is counted as this
HALF = 3.01  # dB: half of a guess's squared error
HALF_ERRORS = 0.5  # of a guess's errors, where cells or tokens are counted
EQUAL = 0.02  # accuracy that is as good as the unprotected one's


@dataclass(frozen=True)
class Point:
    """One protection: how much nearer than a guess the nearest example of an update comes, dB, up to `MOST`, on average
    with its standard error (None for one update); the average cosine, None where the server gets other entries; of how
    many updates, and how many could not be shared so or attacked in the time; the accuracy of a training behind it.

    unit: cells or tokens, where `gain` is the share of a guess's errors that the attacks are without, and no dB; named:
    updates whose words the rows of the embeddings' gradient name beyond doubt; why: no attack had a result.
    """

    name: str
    gain: float | None
    error: float | None
    cosine: float | None
    updates: int
    missing: int
    accuracy: float | None = None
    unit: str = ""
    named: int = 0
    why: str = ""

    @property
    def little(self) -> bool | None:
        """Whether the attacks see less than half of what a guess leaves; None where none had a result."""
        return None if self.gain is None else self.gain < (HALF_ERRORS if self.unit else HALF)

    @property
    def seen(self) -> str:
        """The gain in figures: "8.0 dB", or "62%" of a guess's errors."""
        return "–" if self.gain is None else f"{self.gain:.0%}" if self.unit else f"{self.gain:.1f} dB"

    @property
    def spread(self) -> str:
        """The standard error of the gain, with its sign; "" of one update."""
        return "" if self.error is None else f" ± {self.error:.0%}" if self.unit else f" ± {self.error:.1f}"

    @property
    def left(self) -> float | None:
        """What is left for learning: the accuracy, or else the cosine."""
        return self.cosine if self.accuracy is None else self.accuracy


def points(
    recorded: Sequence[Row], anew: Sequence[Row], accuracy: Mapping[str, float] | None = None, plain: str = ""
) -> list[Point]:
    """What was recorded, and each protection, over the updates that were shared anew and by the same attacks.

    accuracy: of a training behind each protection, by name; plain: which of them is that of what was recorded. It is
    told where all that are to be drawn have one.
    """
    names, attacks = {r["name"] for r in anew}, {r["attack"] for r in anew}
    own = [{**r, "cosine": 1.0} for r in recorded if r["name"] in names and r["attack"] in attacks]
    made = [_point(RECORDED, own, len(names))] if own else []
    behind = dict.fromkeys(r["behind"] for r in anew)
    made += [_point(b, [r for r in anew if r["behind"] == b], len(names)) for b in behind]
    of = {**(accuracy or {}), RECORDED: (accuracy or {}).get(plain)}
    whole = all(of.get(p.name) is not None for p in made)
    return [replace(p, accuracy=of[p.name]) for p in made] if whole else made


def _point(name: str, rows: Sequence[Row], updates: int) -> Point:
    of = dict.fromkeys(r["name"] for r in rows)
    unit = next((r["unit"] for r in rows if r.get("unit")), "")
    gain, error, measured = (_errors_gone if unit else _nearer)([[r for r in rows if r["name"] == n] for n in of])
    cosines = [c for n in of if (c := next((r["cosine"] for r in rows if r["name"] == n and r["cosine"] is not None),
                                           None)) is not None]  # fmt: skip
    named = len({r["name"] for r in rows if r.get("named")})
    why = "" if gain is not None else next((r["why"] for r in reversed(rows) if r.get("why")), "")  # the last: of auto
    return Point(name, gain, error, float(np.mean(cosines)) if cosines else None, measured, updates - measured,
                 unit=unit, named=named, why=why)  # fmt: skip


def _nearer(updates: Sequence[Sequence[Row]]) -> tuple[float | None, float | None, int]:
    """Of images: the average over updates of the most dB above a guess, its standard error, and of how many."""
    best = [max((r["gain"] for r in rows if r["gain"] is not None), default=None) for rows in updates]
    gains = [min(g, MOST) for g in best if g is not None]
    error = float(np.std(gains, ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else None
    return float(np.mean(gains)) if gains else None, error, len(gains)


def _errors_gone(updates: Sequence[Sequence[Row]]) -> tuple[float | None, float | None, int]:
    """Of records or sentences: R, its standard error, and the number of updates that were attacked."""
    scored = [[r for r in rows if r["right"] is not None and r["guess_right"] is not None] for rows in updates]
    best = [max(rows, key=lambda r: r["right"]) for rows in scored if rows]
    less = np.array([r["right"] - r["guess_right"] for r in best], float)
    errors = np.array([r["units"] - r["guess_right"] for r in best], float)
    if not errors.sum():  # none, or a guess that leaves nothing to see
        return None, None, 0
    gain, n = float(less.sum() / errors.sum()), len(best)
    spread = math.sqrt(n / (n - 1) * float(np.square(less - gain * errors).sum())) if n > 1 else 0.0
    return gain, spread / float(errors.sum()) if n > 1 else None, n


def best(found: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both: less to see, and more of the update left."""
    drawn = [p for p in found if p.gain is not None and p.left is not None]
    return sorted((p for p in drawn if not any(_beats(q, p) for q in drawn)), key=lambda p: p.left or 0.0)


def _beats(q: Point, p: Point) -> bool:
    assert p.gain is not None and q.gain is not None and p.left is not None and q.left is not None
    return q.gain <= p.gain and q.left >= p.left and (q.gain, q.left) != (p.gain, p.left)


def sentences(found: Sequence[Point]) -> list[str]:
    """What is said first: which of those that were tried hides most for least."""
    tried = [p for p in found if p.name != RECORDED and p.gain is not None]
    silent = [p for p in found if p.name != RECORDED and p.gain is None]
    without = "; ".join(f"{p.name} ({p.why})" if p.why else p.name for p in silent)
    if not tried:
        return [f"Other protections were to be measured, and no attack had a result behind {without or 'any'}."]
    before = next((p for p in found if p.name == RECORDED and p.gain is not None), None)
    rest = f" No attack had a result behind {without}." if silent else ""
    others = f"{len(tried)} other protection{'s' * (len(tried) > 1)}"
    lead = f"The same private batches were shared anew behind {others}.{rest}{_still_named(found)}"
    if before is not None and before.little:
        seen = f"are without {before.seen} of a guess's errors" if before.unit else (
            f"come {before.seen} nearer than a guess on average")  # fmt: skip
        return [lead, f"As the updates were recorded, these attacks {seen}: where they see so little, they cannot tell "
                "what protects."]  # fmt: skip
    lead += _at_equal_utility(tried, before)
    hide = [p for p in tried if p.little and p.left is not None and not p.named]
    counted = bool(tried[0].unit)
    if not hide:
        least = min(tried, key=lambda p: p.gain or 0.0)
        goal = "leaves the attacks half of a guess's errors" if counted else (
            f"brings the attacks down to {HALF:.0f} dB above a guess")  # fmt: skip
        goal += ", and names no words" if any(p.little for p in tried) else ""
        how = f"where they are without {least.seen} of them" if counted else f"with {least.seen}"
        return [lead, f"None {goal}; the nearest to that is {least.name}, {how}."]
    first = max(hide, key=lambda p: p.left or 0.0)
    was = "" if before is None else f"; as recorded: {before.seen.removesuffix(' dB')}"
    of, scale = ("are without less than half of a guess's errors", "share of them that is gone") if counted else (
        f"come less than {HALF:.0f} dB nearer than a guess", "dB above a guess")  # fmt: skip
    return [lead, f"Of those behind which the attacks {of}, {first.name} leaves most {_left(first)} ({scale}: "
            f"{first.seen.removesuffix(' dB')}{was}). A better attack may see more."]  # fmt: skip


def _still_named(found: Sequence[Point]) -> str:
    """Of text: behind which protections the rows of the embeddings' gradient name the words, whatever attacks see."""
    behind = [p.name for p in found if p.named and p.name != RECORDED]
    if not behind:
        return ""
    return (f" Behind {', '.join(behind)}, the rows of the embeddings' gradient still name the words: that takes no "
            "attack.")  # fmt: skip


def _left(p: Point) -> str:
    """What a protection leaves for learning, in words."""
    if p.accuracy is not None:
        return f"accuracy: {p.accuracy:.1%} after the training behind it"
    return f"of the update: a cosine of {p.cosine:.2f} to what the client computed (1: unharmed)"


def _at_equal_utility(tried: Sequence[Point], before: Point | None) -> str:
    """Which protection hides most among those that cost no accuracy to speak of; "" where no training says it."""
    if before is None or before.accuracy is None or before.gain is None:
        return ""
    plain = before.accuracy
    equal = [p for p in tried if p.accuracy is not None and p.accuracy >= plain - EQUAL]
    least = min(equal, key=lambda p: p.gain or 0.0, default=None)
    if least is None or least.gain is None or least.gain >= before.gain:
        return (f" None that costs less than {EQUAL:.0%} of the accuracy ({plain:.1%} as recorded) hides more than "
                "what was recorded.")  # fmt: skip
    of = "of a guess's errors are gone" if least.unit else "above a guess"
    return (f" At equal utility (accuracy within {EQUAL:.0%} of {plain:.1%}), {least.name} hides most: "
            f"{least.seen} {of}, for {before.seen.removesuffix(' dB')} as recorded.")  # fmt: skip
