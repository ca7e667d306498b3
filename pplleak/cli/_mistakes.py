"""A command line that cannot be, told in one line: what is wrong, what was meant perhaps, where help is."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from pplleak import reading
from pplleak.errors import BadInput, require_seed


@contextlib.contextmanager
def told(command: str) -> Iterator[None]:
    """What the parser prints in a box on standard error, as the line of a BadInput; a help text goes its own way."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise BadInput(line(printed.getvalue(), command)) from None


def line(box: str, command: str) -> str:
    """The line that a box says: its first paragraph, and of the options that it proposes, the names."""
    rows = [row.strip("│ ") for row in box.splitlines() if row[:1] not in ("╭", "╰")]
    if "│" not in box:  # where there is no UTF-8 it has no frame, and its title is a row with a rule
        rows = rows[2:]
    parts: list[list[str]] = [[]]
    for row in rows:
        if set(row) <= {"─", "-"}:  # a rule, or an empty row
            parts.append([])
        else:
            parts[-1].append(row)
    said = " ".join(parts[0]).rstrip(".")
    meant = next((part for part in parts if part and part[0].startswith("Perhaps you meant")), [])
    names = [found[0] for row in meant if (found := re.match(r"--[\w.-]+", row))]
    near = f"; did you mean {' or '.join(sorted(names, key=len)[:3])}?" if names else ""
    said = re.sub(r"no type matching (\S+) could be instantiated from \[(.*?)\]", _kinds, said)
    lead = textwrap.shorten(said[:1].lower() + said[1:], 300, placeholder=" …")
    return f"{lead or 'the command line cannot be read'}{near} (pplleak {command} --help lists all)"


def _kinds(found: re.Match[str]) -> str:
    kinds = [kind.strip("{}") for kind in found[1].split("|") if kind != "{None}"]
    return f"{found[2]} is no {' or '.join(kinds)}"


def require_numbers(args: Any, prefix: str = "--") -> None:
    """Raise BadInput for a number that no setting can be: NaN, an integer of hundreds of digits, a seed that not every
    generator takes."""
    for field in dataclasses.fields(args):
        value, flag = getattr(args, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            require_numbers(value, f"{flag.removesuffix('-settings')}.")
        elif field.name == "seed":
            require_seed(value, flag)
        elif isinstance(value, int | float | tuple):
            reading.numbers(value, flag)
