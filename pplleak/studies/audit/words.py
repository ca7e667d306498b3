"""An audit in plain words: what each update gives away, and what a reader who is no engineer has to know first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pplleak.posterior.summary import LITTLE, MUCH
from pplleak.studies.audit import counted

Row = Mapping[str, Any]
QUARTER, HALF = 6.02, 3.01  # dB by which a squared error falls to a quarter, to a half
MOST_ERRORS, HALF_ERRORS = 0.75, 0.5  # the same of the errors of a guess, where cells or tokens are counted
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
    if best is None:
        why = "; ".join(f"{r['attack']}: {r['why']}" for r in rows) or "no attack was made"
        best = Finding("open", f"No attack had a result ({why}). That is no sign of privacy.", None)
    return _with_words(best, rows)


def _with_words(found: Finding, rows: Sequence[Row]) -> Finding:
    """A finding on text, worse where the rows of the embeddings' gradient name the words: that takes no attack."""
    row = next((r for r in rows if r.get("named")), None)
    if row is None:
        return found
    right = row["named_right"]
    how = "beyond doubt" if right is None else f"{right:.0%} right, as the private sentences show"
    line = f"The rows of the embeddings' gradient that are not zero name its words, {row['named']} of them, at once "
    line += f"and {how}. "
    if found.level not in ("little", "open"):
        return replace(found, why=line + found.why)
    return Finding("partly", line + found.why, found.row, measured=right is not None and right > 0.5)


def _of(row: Row) -> Finding:
    trusted, ratio = row["trusted"], row["sd_ratio"]
    gain = row["gain"]
    believed = trusted and ratio is not None
    left = f"{ratio:.0%} of the uncertainty that public {things(row)} alone leave is left" if believed else ""
    if row.get("unit"):
        return _counted(row, believed, left)
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


def _counted(row: Row, believed: bool, left: str) -> Finding:
    """A finding on records or sentences: by their cells or tokens, as images are by their squared error."""
    near, less = counted.said(row), counted.gain(row)
    luck = row["luck"]
    if less is None and row["right"] is not None and luck is not None and luck > counted.UNLIKELY:
        near += f", and who saw no update has as many right in {luck:.0%} of such batches"
    if believed and row["sd_ratio"] < MUCH:
        return Finding("away", _said("The attack can be believed", left, near), row)
    if less is not None and less >= MOST_ERRORS:
        return Finding("away", _said("Measured against the truth", near), row, measured=True)
    if believed and row["sd_ratio"] < LITTLE:
        return Finding("partly", _said("The attack can be believed", left, near), row)
    if less is not None and less >= HALF_ERRORS:
        return Finding("partly", _said("Measured against the truth", near), row, measured=True)
    if believed:
        return Finding("little", _said("The attack can be believed", left, near), row)
    why = "The attack gives one answer without its uncertainty"
    why = why if row["trusted"] is None else "The attack cannot be believed"
    return Finding("open", _said(why, near, "a better attack may see more"), row)


def things(said: Mapping[str, Any]) -> str:
    """What a row of an audit, a summary, or the attributes of a result are of: images, records or sentences."""
    if said.get("unit") == counted.CELLS or "cell_accuracy" in said or said.get("columns"):
        return "records"
    if said.get("unit") == counted.TOKENS or "token_accuracy" in said or said.get("vocabulary"):
        return "sentences"
    return "images"


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
    lines += _units(sections)
    scored = [s for s in sections if s["best_psnr"] is not None]
    if scored:
        worst = max(scored, key=lambda s: s["best_psnr"])
        guess = (
            "" if worst["guess_psnr"] is None else f"; guesses from public images come to {worst['guess_psnr']:.1f} dB"
        )
        lines.append(f"The example that was given away most, of {worst['name']}, was reconstructed to "
                     f"{worst['best_psnr']:.1f} dB (PSNR; more is nearer){guess}.")  # fmt: skip
    return lines


def _units(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of records and sentences: those that were given away most, and the words that were named."""
    lines = []
    for unit, thing in counted.THINGS.items():
        of = [s for s in sections if s.get("counted") and s["counted"]["unit"] == unit]
        worst = counted.worst([s["counted"] for s in of])
        if worst is None or not (said := counted.said(worst)):
            continue
        by = "The attack that showed most" if len(sections) == 1 else f"The attack that showed most, on {worst['name']}"
        lines.append(f"{by}, by {worst['attack']}: {said}.{_whole(worst, thing)}")
    named = [s for s in sections if s.get("named")]
    if named:
        lines.append(f"The rows of the embeddings' gradient that are not zero name the words of "
                     f"{len(named)} of {len(sections)}; that takes no attack.")  # fmt: skip
    return lines


def _whole(row: Row, thing: str) -> str:
    """How many records or sentences of a batch are right throughout."""
    whole, of = row["whole"], row["examples"]
    if whole is None or not of:
        return ""
    unit = row["unit"].removesuffix("s")
    if of == 1:
        return f" The {thing} is right in every {unit}." if whole else f" The {thing} is not right in every {unit}."
    return f" Of its {of} {thing}s, {whole} {'is' if whole == 1 else 'are'} right in every {unit}."


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
        lines.append(f"For {trusted[None]}, it found one answer without saying how uncertain that is.")
    if trusted[False]:
        lines.append(f"For {trusted[False]}, the attack failed a check of its own. What it shows may be wrong, which "
                     "protects nobody: a better attack may do better.")  # fmt: skip
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
