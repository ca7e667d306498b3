"""The one error a user's mistake raises, and the help that goes into its message."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

LEAST, MOST = 1e-30, 1e30  # of a positive setting: 1/σ², and what it weighs, are still numbers
SEEDS = 2**31


class BadInput(ValueError):
    """Something the user gave is wrong. The message is one line: what is wrong, and how to mend it.

    The command line prints it and exits with code 2; a library user catches it as a ``ValueError``.
    """


def printable(value: object, most: int = 200) -> str:
    """Words from elsewhere (a file, an error, a name) as a message may hold them: on one line, no longer than `most`
    letters, and without what a terminal would obey; such letters stand there as they are written in Python."""
    try:
        text = value if isinstance(value, str) else str(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list within lists
        text = f"({type(value).__name__})"
    cut = f"{text[: most - 20]} … ({len(text)} letters)" if len(text) > most else text
    return "".join(c if c.isprintable() else " " if c in "\n\r\t" else c.encode("unicode_escape").decode() for c in cut)


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> BadInput:
    """The error for a name that nothing answers to, with the nearest known names suggested."""
    known, name = sorted(known), printable(name, 80)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    help_ = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}."
    return BadInput(f"unknown {kind} '{name}': {help_}{' ' + hint if hint else ''}")


def require_positive(**values: float) -> None:
    """Raise BadInput for the first of the named settings that is not a positive number whose square is one, too."""
    for name, value in values.items():
        if not (isinstance(value, int | float) and LEAST <= value <= MOST):
            raise BadInput(f"{name} must be a positive number, from {LEAST:g} to {MOST:g}, not {printable(value)}"
                           if isinstance(value, float) and math.isfinite(value) and value > 0
                           else f"{name} must be a positive number, not {printable(value)}")  # fmt: skip


def require_seed(seed: int, name: str = "the seed") -> None:
    """Raise BadInput for a seed that torch, numpy and scikit-learn do not all take, or that leaves no room for the next
    ones: images, chains and draws count on from it."""
    if not 0 <= seed < SEEDS:
        raise BadInput(f"{name} must be a whole number from 0 to {SEEDS - 1}, not {printable(seed)}")
