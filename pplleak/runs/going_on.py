"""Going on from an earlier run: a folder says what its rows were made with, and rows of other settings are refused."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from pplleak import reading
from pplleak.errors import BadInput, printable
from pplleak.runs import files, locks
from pplleak.runs.files import ELSEWHERE


def settings(args: Any, leaving: Container[str] = ()) -> dict[str, Any]:
    """What decides a run's rows, as JSON gives it back: the fields of `args` and, as `files`, the SHA-256 of every file
    that they name. A run does not go on with a model, an inference, a network or weights that have changed since.

    Args:
        args: a dataclass or a mapping. leaving: fields that decide how many rows there are, or where, but not what is
            in them.

    Raises:
        BadInput: one of the files cannot be read.
    """
    given = dataclasses.asdict(args) if dataclasses.is_dataclass(args) and not isinstance(args, type) else dict(args)
    plain = json.loads(
        json.dumps({n: v for n, v in given.items() if n not in leaving}, default=str),
        parse_constant=str,  # an infinity is written down as a word, and is the same when it is read back
    )
    try:
        digests = {f: hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in sorted(set(_files(plain)))}
    except OSError as error:
        raise BadInput(f"cannot read {error.filename}: {error.strerror}") from error
    return {**plain, "files": digests} if digests else plain


def _files(value: Any) -> Iterator[str]:
    """Files named by a setting: PATH, FILE.py:FUNCTION, or several separated by commas."""
    if isinstance(value, str):
        for word in value.split(","):
            yield from (f for f in (word, word.rpartition(":")[0]) if os.path.isfile(f))  # False for what is no path
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _files(one)


def require_same(before: Any, now: Mapping[str, Any], out: Path, what: str = "a run") -> None:
    """Raise BadInput where `out` holds something that was made with other settings: a run goes on, it does not mix.

    Args:
        before: the settings that were read back from `out`. now: those of `settings`.
    """
    with readable(out):
        before = dict(before)
    for name in sorted(set(before) | set(now)):
        if before.get(name) != now.get(name):
            raise BadInput(f"{out} holds {what} with {printable(name)} = {printable(before.get(name))}, this one has "
                           f"{printable(now.get(name))}: {ELSEWHERE}")  # fmt: skip


def settle(
    path: Path, now: Mapping[str, Any], what: str = "a run", *, under: str = "", rows: Path | None = None
) -> None:
    """Write down in `path`, a JSON file, what a run is made with, or see that it is what the run there was made with.

    Args:
        now: the settings of this run. what: the earlier run, in words.
        under: where the settings stand in the file; on its top level if not named.
        rows: a file of rows that this is about: rows that do not say what they were made with are refused.

    Raises:
        BadInput: the settings differ, or the file cannot be read or written.
    """
    with locks.alone(path.parent):
        if path.exists():
            with readable(path):
                before = _kept(path, under)
            require_same(before, now, path.parent if under else path, what)
        elif rows is not None and rows.exists():
            raise BadInput(f"{rows} does not say what its rows were made with, {path.name} is missing: {ELSEWHERE}")
        else:
            files.json(path, {under: dict(now)} if under else dict(now))


def _kept(path: Path, under: str) -> dict[str, Any]:
    """The settings that a JSON file holds; a file that others may have changed is read as one."""
    try:
        kept = reading.decoded(reading.contents(path), dict[str, Any], "it holds no settings")
        return reading.typed(kept[under], dict[str, Any], f"its '{under}'") if under else kept
    except BadInput as error:
        raise BadInput(f"cannot go on from {printable(path)}: {error}; {ELSEWHERE}") from error


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong while an earlier run's file is read, as the one line that says how to go on."""
    try:
        yield
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError, MemoryError, csv.Error) as error:
        raise BadInput(f"cannot go on from {printable(path)}: {printable(error)}; {ELSEWHERE}") from error
