"""What would protect: the same private batches shared anew behind each protection, what attacks then see of them, and
what the protection costs.

What it costs is accuracy, where every protection was trained behind (`utility`). Where not, it is what the protection
takes from the update itself: the cosine between what the server gets and what the client computed, 1 for an update that
arrives as it was.
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
EQUAL = 0.02  # accuracy that is as good as the unprotected one's


@dataclass(frozen=True)
class Point:
    """One protection: how much nearer than a guess the nearest example of an update comes, dB, up to `MOST`, on average
    with its standard error (None for one update); the average cosine, None where the server gets other entries; of how
    many updates, and how many could not be shared so or attacked in the time; the accuracy of a training behind it."""

    name: str
    gain: float | None
    error: float | None
    cosine: float | None
    updates: int
    missing: int
    accuracy: float | None = None

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
    best = [max((r["gain"] for r in rows if r["name"] == n and r["gain"] is not None), default=None) for n in of]
    gains = [min(g, MOST) for g in best if g is not None]
    cosines = [c for n in of if (c := next((r["cosine"] for r in rows if r["name"] == n and r["cosine"] is not None),
                                           None)) is not None]  # fmt: skip
    error = float(np.std(gains, ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else None
    return Point(name, float(np.mean(gains)) if gains else None, error, float(np.mean(cosines)) if cosines else None,
                 len(gains), updates - len(gains))  # fmt: skip


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
    if not tried:
        return ["Other protections were to be measured, and no attack on them had a result in its time."]
    before = next((p for p in found if p.name == RECORDED and p.gain is not None), None)
    silent = sum(p.name != RECORDED and p.gain is None for p in found)
    rest = f" On {silent} more, no attack had a result in its time." if silent else ""
    others = f"{len(tried)} other protection{'s' * (len(tried) > 1)}"
    lead = f"The same private batches were shared anew behind {others}.{rest}"
    if before is not None and before.gain is not None and before.gain < HALF:
        return [lead, f"As the updates were recorded, these attacks come {before.gain:.1f} dB nearer than a guess on "
                "average: where they see so little, they cannot tell what protects."]  # fmt: skip
    lead += _at_equal_utility(tried, before)
    hide = [p for p in tried if p.gain is not None and p.gain < HALF and p.left is not None]
    if not hide:
        least = min(tried, key=lambda p: p.gain or 0.0)
        return [lead, f"None brings the attacks down to {HALF:.0f} dB above a guess; the nearest to that is "
                f"{least.name}, with {least.gain:.1f} dB."]  # fmt: skip
    first = max(hide, key=lambda p: p.left or 0.0)
    was = "" if before is None else f"; as recorded: {before.gain:.1f}"
    return [lead, f"Of those behind which the attacks come less than {HALF:.0f} dB nearer than a guess, {first.name} "
            f"leaves most {_left(first)} (dB above a guess: {first.gain:.1f}{was}). A better attack may see "
            "more."]  # fmt: skip


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
    return (f" At equal utility (accuracy within {EQUAL:.0%} of {plain:.1%}), {least.name} hides most: "
            f"{least.gain:.1f} dB above a guess, for {before.gain:.1f} as recorded.")  # fmt: skip
