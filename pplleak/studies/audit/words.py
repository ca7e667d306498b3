"""An audit in plain words: what each update gives away, and what a reader who is no engineer has to know first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pplleak.posterior.summary import LITTLE, MUCH

Row = Mapping[str, Any]
QUARTER, HALF = 6.02, 3.01  # dB by which a squared error falls to a quarter, to a half
LEVELS = {
    "away": "gives its data away",
    "partly": "gives its data away in part",
    "little": "says little of its data",
    "open": "cannot be judged by this audit",
}


@dataclass(frozen=True)
class Finding:
    """What is said of one update: the level (a key of `LEVELS`), why, the row of the attack that it rests on, and
    whether it was measured against the truth rather than believed."""

    level: str
    why: str
    row: Row | None
    measured: bool = False


def finding(rows: Sequence[Row]) -> Finding:
    """The worst that any attack on an update showed.

    A result that is trusted counts by what it leaves open of the prior's uncertainty. Where the auditor has the truth,
    any attack counts by how much nearer it came than a guess from public images, trusted or not: an attacker need not
    believe what he sees. No attack that failed counts as privacy.
    """
    best: Finding | None = None
    order = list(LEVELS)
    for row in rows:
        if row["status"] not in ("done", "cut short"):
            continue
        found = _of(row)
        if best is None or order.index(found.level) <= order.index(best.level):
            best = found
    if best is not None:
        return best
    why = "; ".join(f"{r['attack']}: {r['why']}" for r in rows) or "no attack was made"
    return Finding("open", f"No attack had a result ({why}). That is no sign of privacy.", None)


def _of(row: Row) -> Finding:
    trusted, ratio = row["trusted"], row["sd_ratio"]
    gain = row["gain"]
    believed = trusted and ratio is not None
    left = f"{ratio:.0%} of the uncertainty that public images alone leave is left" if believed else ""
    near = ""
    if gain is not None:
        of = f" of its {row['examples']}" if row["examples"] > 1 else ""
        near = f"the best reconstruction{of} is {gain:.1f} dB nearer to its private example than a guess"
    if believed and ratio < MUCH:
        return Finding("away", _said("The attack can be believed", left, near), row)
    if gain is not None and gain >= QUARTER:
        return Finding(
            "away", _said("Measured against the truth", near, "that is a quarter of its squared error, or less"),
            row, measured=True,
        )  # fmt: skip
    if believed and ratio < LITTLE:
        return Finding("partly", _said("The attack can be believed", left, near), row)
    if gain is not None and gain >= HALF:
        return Finding("partly", _said("Measured against the truth", near), row, measured=True)
    if believed:
        return Finding("little", _said("The attack can be believed", left, near), row)
    why = "The attack gives one image without its uncertainty" if trusted is None else "The attack cannot be believed"
    return Finding("open", _said(why, near, "a better attack may see more"), row)


def _said(lead: str, *parts: str) -> str:
    return f"{lead}: {'; '.join(p for p in parts if p)}."


def first_screen(sections: Sequence[Mapping[str, Any]], tried: Sequence[str] = ()) -> dict[str, list[str]]:
    """The answers to four questions, a list of sentences each; `tried`: what is said of protections that were tried."""
    return {"shared": _shared(sections), "gives": _gives(sections), "sure": _sure(sections),
            "protect": [*tried, *_protect(sections, bool(tried))]}  # fmt: skip


def _shared(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [re.fullmatch(r"round-(\d+)-client-(.+?)(-step-\d+)?", s["name"]) for s in sections]
    many = len(sections)
    said = _number(many, "update")
    if many > 1 and all(names):
        rounds, clients = ({n[g] for n in names if n} for g in (1, 2))
        said = f"{said}: of {_number(len(clients), 'client')} over {_number(len(rounds), 'round')}"
        said += ", each step of their training by itself" if any(n and n[3] for n in names) else ""
    examples = sorted({s["examples"] for s in sections if s["examples"]})
    of = "" if not examples else (
        f",{' each' * (many > 1)} computed on {_number(examples[0], 'private example')}" if len(examples) == 1
        else f", computed on {examples[0]} to {examples[-1]} private examples each"
    )  # fmt: skip
    moved = sum(bool(s["local"]) for s in sections)
    kind = "changes of a network's weights" if moved == many else "gradients of a network" if not moved else (
        "gradients, or changes of a network's weights")  # fmt: skip
    return [f"{said}{of}.", f"What left the client were {kind}: no image, no label, no record. The question is what "
            "these numbers tell of the data behind them to whoever receives them."]  # fmt: skip


def _gives(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    count = Counter(s["level"] for s in sections)
    lines = [f"{count[level]} of {len(sections)} {_plural(count[level], words)}." for level, words in LEVELS.items()
             if count[level]]  # fmt: skip
    scored = [s for s in sections if s["best_psnr"] is not None]
    if scored:
        worst = max(scored, key=lambda s: s["best_psnr"])
        guess = (
            "" if worst["guess_psnr"] is None else f"; guesses from public images come to {worst['guess_psnr']:.1f} dB"
        )
        lines.append(f"The example that was given away most, of {worst['name']}, was reconstructed to "
                     f"{worst['best_psnr']:.1f} dB (PSNR; more is nearer){guess}.")  # fmt: skip
    return lines


def _sure(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    trusted = Counter(s["trusted"] for s in sections if s["trusted"] or not s["measured"])
    measured = sum(s["measured"] for s in sections)
    lines = []
    if measured:
        lines.append(f"For {measured} of {len(sections)}, the private examples themselves show it: that needs no trust "
                     "in the attack.")  # fmt: skip
    if trusted[True]:
        lines.append(f"For {trusted[True]} of {len(sections)}, the attack passed all its own checks: it explains what "
                     "was shared, its computation converged, and the update says something.")  # fmt: skip
    if trusted[None]:
        lines.append(f"For {trusted[None]}, it found one image without saying how uncertain that is.")
    if trusted[False]:
        lines.append(f"For {trusted[False]}, the attack failed a check of its own. Its picture may be wrong, and that "
                     "it is wrong protects nobody: a better attack may do better.")  # fmt: skip
    replays = [s["replay"] for s in sections if s["replay"] is not None]
    if replays:
        lines.append(f"With the true examples put in, the client as it is modelled explains what was shared up to "
                     f"{max(replays):.2g} of its length (the worst; 0 is exact).")  # fmt: skip
    return lines


def _protect(sections: Sequence[Mapping[str, Any]], tried: bool = False) -> list[str]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for s in sections:
        groups.setdefault(s["protected"], []).append(s)
    lines = []
    if len(groups) > 1:
        for name, of in groups.items():
            away = sum(s["level"] in ("away", "partly") for s in of)
            unjudged = sum(s["level"] == "open" for s in of)
            rest = f", and {unjudged} cannot be judged, which is no protection" if unjudged else ""
            lines.append(f"Behind {name}: {away} of {len(of)} give something away{rest}.")
    else:
        (only,) = groups or ["nothing"]
        other = "" if tried else " No other protection was measured in this audit."
        spent = max((s["epsilon"] for s in sections if s.get("epsilon") is not None), default=None)
        so_far = "" if spent is None else f", and have spent an ε of {spent:.3g} by the last of them at most"
        lines.append(f"All were shared behind {only}{so_far}.{other}")
    lines.append("What hides an example is noise that is calibrated to it (differential privacy, DP-SGD), and a sum of "
                 "many clients that the server cannot take apart (secure aggregation). How much of it costs how much "
                 "accuracy is measured by the command defend, on your own data.")  # fmt: skip
    return lines


def _number(count: int, of: str) -> str:
    return f"{count} {of}{'s' * (count != 1)}"


def _plural(count: int, words: str) -> str:
    """Of verbs and pronouns: 'gives its data away' of one, 'give their data away' of more."""
    if count == 1:
        return words
    for one, more in (("gives its", "give their"), ("says", "say"), ("of its", "of their")):
        words = words.replace(one, more)
    return words
