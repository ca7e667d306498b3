"""What a person sees of an attack on text: sentences on the terminal, in tokens.csv, a picture and report.html."""

from __future__ import annotations

import textwrap
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pplleak import runs
from pplleak.data.vocabulary import SPECIAL, Vocabulary
from pplleak.errors import printable
from pplleak.posterior import Posterior, tokens
from pplleak.studies.attack import pages
from pplleak.studies.attack.records import BAD, GOOD, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4  # sentences on the terminal and in the picture
LETTERS = 24  # of a token
FIELDS = ("sentence", "position", "truth", "estimate", "probability", "right")
ROWS = {
    "token_accuracy": ("tokens that are right, at their places", "{:.1%}"),
    "guess_accuracy": ("tokens that a guess without the gradient has right", "{:.1%}"),
    "exact_match": ("sentences that are right in every token", "{:.0%}"),
    "rouge1": ("ROUGE-1", "{:.3f}"),
    "rouge2": ("ROUGE-2", "{:.3f}"),
    "rougel": ("ROUGE-L", "{:.3f}"),
    "token_probability": ("probability that a token is right, as claimed", "{:.1%}"),
}  # how far claims are from what is right is `records.ROWS`', of cells and tokens alike


def _short(word: str) -> str:
    said = printable(word)
    return said if len(said) <= LETTERS else f"{said[: LETTERS - 1]}…"


def table(rows: list[dict[str, Any]]) -> Table:
    """The tokens of the first sentences, each with its probability."""
    shown = Table(title="what the gradient says of each sentence", title_justify="left")
    has_truth = rows[0]["truth"] is not None
    for name in (*(("truth",) if has_truth else ()), "estimate, and how sure"):
        shown.add_column(name)
    for b, of in groupby(rows, key=lambda r: r["sentence"]):
        own = list(of)
        if b >= SHOWN:
            break
        said = Text()
        for row in own:
            style = {True: "green", False: "bold red", None: ""}[row["right"]]
            said.append(_short(row["estimate"] or "–"), style)
            said.append(" " if row["probability"] is None else f" {row['probability']:.0%}  ", "bright_black")
        truth = Text(" ".join(_short(r["truth"]) for r in own if r["truth"])) if has_truth else None
        shown.add_row(*((truth,) if truth is not None else ()), said, end_section=True)
    return shown


def write(posterior: Posterior, vocabulary: Vocabulary, out: Path) -> list[dict[str, Any]]:
    """tokens.csv into `out`; its rows."""
    rows = tokens.rows(posterior, vocabulary)
    runs.table(out / "tokens.csv", rows, FIELDS)
    return rows


def picture(posterior: Posterior, summary: dict[str, Any], vocabulary: Vocabulary, heading: str, said: str) -> Figure:
    """Sentences (at most SHOWN) as their tokens, one beside the other, each over a bar for how sure that is, green
    where it is right, red where not; below a wrong one stands the truth.

    Args:
        heading: what was attacked. said: the verdict.
    """
    from matplotlib.figure import Figure

    found = tokens.tokens(posterior, vocabulary)
    lines: list[list[tuple[int, int, float, float]]] = []  # sentence, position, left, width in letters
    for b in range(min(SHOWN, len(found.estimate))):
        lines.append([])
        left = 0.0
        for i in found.shown[b].nonzero()[0].tolist():
            words = [_word(vocabulary, e[b, i]) for e in (found.estimate, found.truth) if e is not None]
            width = max(3.0, *map(len, words)) + 1.0
            if left + width > 96:
                lines.append([])
                left = 0.0
            lines[-1].append((b, i, left, width))
            left += width
    foot = textwrap.wrap(said, 118)
    height = 0.62 * len(lines) + 1.1 + 0.2 * len(foot)
    figure = Figure(figsize=(9.5, height))
    figure.text(0.02, 1 - 0.22 / height, heading, fontsize=10.5, color=INK, weight="bold", va="center")
    share = (
        ""
        if summary["token_accuracy"] is None
        else (
            f"{summary['token_accuracy']:.0%} of the tokens are right, at their places; "
            f"ROUGE-L {summary['rougel']:.2f}.  "
        )
    )
    below = "Below a wrong token: the truth.  " if found.truth is not None else ""
    bars = "" if posterior.kind == "point" else "Bars: how sure each token is."
    figure.text(0.02, 1 - 0.45 / height, f"{share}{below}{bars}", fontsize=8.5, color=INK, va="center")
    axes = figure.add_axes((0.02, (0.2 * len(foot) + 0.25) / height, 0.96, 0.62 * len(lines) / height))
    axes.set_xlim(0, 97), axes.set_ylim(len(lines), 0), axes.axis("off")
    right = found.right
    for y, line in enumerate(lines):
        for b, i, left, width in line:
            state = None if right is None else bool(right[b, i])
            ink = {True: GOOD, False: BAD, None: INK}[state]
            axes.text(left, y + 0.3, _word(vocabulary, found.estimate[b, i]) or "–", fontsize=8.5, color=ink,
                      family="monospace", va="center", parse_math=False)  # fmt: skip
            sure = float(found.probability[b, i])
            if sure == sure:
                axes.barh(y + 0.53, width - 1.2, 0.1, left, color="#e8e8e8")
                axes.barh(y + 0.53, (width - 1.2) * sure, 0.1, left, color=ink)
            if state is False and found.truth is not None:
                axes.text(left, y + 0.74, _word(vocabulary, found.truth[b, i]) or "–", fontsize=7.5, color="#666666",
                          family="monospace", va="center", parse_math=False)  # fmt: skip
    figure.text(0.02, 0.2 * len(foot) / height + 0.06 / height, "\n".join(foot), fontsize=9, weight="bold", va="top",
                linespacing=1.3, color={True: GOOD, None: "#666666", False: BAD}[summary["trusted"]])  # fmt: skip
    return figure


def _word(vocabulary: Vocabulary, token: int) -> str:
    return _short(vocabulary.tokens[token]) if token >= len(SPECIAL) else ""


def page(posterior: Posterior, summary: dict[str, Any], heading: str, out: Path) -> None:
    """report.html into `out`, of which everything is escaped: words come from files."""
    vocabulary = tokens.vocabulary_of(posterior)
    assert vocabulary is not None
    found = tokens.tokens(posterior, vocabulary)
    text = pages.rendered(
        "sentences.html", posterior, summary, heading=heading, known=found.truth is not None,
        sentences=shown(found), rows=named_rows(summary),
        numbers=[(label, form.format(summary[n])) for n, (label, form) in ROWS.items() if summary[n] is not None],
    )  # fmt: skip
    runs.text(out / pages.FILE, text)


def shown(found: tokens.Tokens) -> list[dict[str, Any]]:
    """The sentences as a page has them."""
    return [_shown(found, b) for b in range(len(found.estimate))]


def _shown(found: tokens.Tokens, b: int) -> dict[str, Any]:
    """A sentence as the page has it."""
    made, right = [], found.right
    for i in found.shown[b].nonzero()[0].tolist():
        sure = float(found.probability[b, i])
        made.append({
            "word": _word(found.vocabulary, found.estimate[b, i]) or "–",
            "state": "" if right is None else "right" if right[b, i] else "wrong",
            "sure": f"{sure:.0%}" if sure == sure else None, "shade": f"{0.45 * sure if sure == sure else 0.1:.2f}",
        })  # fmt: skip
    truth = None if found.truth is None else " ".join(map(printable, found.vocabulary.words(found.truth[b])))
    return {"tokens": made, "truth": truth}


def named_rows(summary: dict[str, Any]) -> str:
    """What the rows of the embeddings' gradient say."""
    named = summary["tokens_named"]
    if named is None:
        return "Its gradient is not shared, or names no token: what is found rests on the layers behind it."
    how = "exactly" if summary["tokens_named_exactly"] else "more likely than not, through the noise"
    return f"The rows of its gradient that are not zero name {len(named)} tokens, {how}: " + ", ".join(
        map(printable, named)
    )
