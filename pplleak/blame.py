"""Whose error it is: what goes wrong in a user's own file becomes one line that names the file and the line."""

from __future__ import annotations

import contextlib
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from pplleak import folders
from pplleak.errors import BadInput, printable

OURS = {folders.FOLDER}  # whose files are no user's; `programs` adds the folders that it opens


def lines_of(error: BaseException, path: Path) -> list[int]:
    """The lines of a file that an error passed through, the outermost first; of that very file, not of its name."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f.lineno or 0 for f in frames if Path(f.filename).resolve() == path.resolve()]


def describe(error: BaseException, path: Path | None = None) -> str:
    """An error of a user's file in one line: its kind, its message, and the last line of the file it passed, or of
    whatever file of the user's where none is named."""
    lines = lines_of(error, path) if path else []
    place = None if path else users(error)
    where = f" (line {lines[-1]})" if lines else f" ({place[0]}, line {place[1]})" if place else ""
    if isinstance(error, SystemExit):
        return f"it ends the program, by sys.exit({'' if error.code is None else printable(repr(error.code))}){where}"
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {printable(message[0]) if message else ''}{where}"


def users(error: BaseException) -> tuple[Path, int] | None:
    """The last line of a user's own file that an error, or what caused it, passed through: of one that is neither
    pplleak's nor of an installed package nor Python's."""
    installed = {Path(sysconfig.get_path(p)).resolve() for p in ("stdlib", "platstdlib", "purelib", "platlib")}
    ours = installed | OURS
    cause: BaseException | None = error
    while cause is not None:
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            path = Path(frame.filename).resolve()
            if path.suffix == ".py" and path.is_file() and not any(path.is_relative_to(place) for place in ours):
                return path, frame.lineno or 0
        cause = cause.__cause__
    return None


@contextlib.contextmanager
def blamed(what: str) -> Iterator[None]:
    """What goes wrong inside, as the one line of a BadInput: what, the error, and the line of the user's file that it
    passed. An exit is such an error, too: a file that is opened ends nothing."""
    try:
        yield
    except BadInput:
        raise
    except MemoryError as error:
        raise BadInput(f"{what}: it takes more memory than there is") from error
    except (Exception, SystemExit) as error:
        raise BadInput(f"{what}: {describe(error)}") from error
