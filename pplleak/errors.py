"""The one error a user's mistake raises, and the help that goes into its message."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class BadInput(ValueError):
    """Something the user gave is wrong. The message is one line: what is wrong, and how to mend it.

    The command line prints it and exits with code 2; a library user catches it as a ``ValueError``.
    """


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> BadInput:
    """The error for a name that nothing answers to, with the nearest known names suggested."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    help_ = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}."
    return BadInput(f"unknown {kind} '{name}': {help_}{' ' + hint if hint else ''}")


def require_positive(**values: float) -> None:
    """Raise BadInput for the first of the named settings that is not a positive number."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise BadInput(f"{name} must be a positive number, not {value}")
