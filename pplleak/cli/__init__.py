"""The command line. Every file of this folder without an underscore is a command: the first line of its docstring is
its line of `pplleak --help`, and its `run(argv)` does it and returns an exit code. It is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pplleak import folders, reading
from pplleak.errors import BadInput, printable, unknown

LONGEST = 1200  # letters of a message: what a file says is shown, and never all of it

warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # Pyro's own use of torch.jit


def commands() -> dict[str, str]:
    """Every command with its line of help."""
    return folders.names(Path(__file__).parent)


def usage() -> str:
    lines = ["usage: pplleak COMMAND [OPTIONS]      (pplleak COMMAND --help lists them)", ""]
    return "\n".join(lines + [f"  {name:<9} {line}" for name, line in commands().items()])


def main(argv: Sequence[str] | None = None) -> None:
    """The `pplleak` command. Exit codes: 0 done, 2 bad input or a full disk (one line on stderr), 130 interrupted.

    A KeyboardInterrupt comes out where a command has not said itself what is kept; `pplleak.__main__` says it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _note
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that is no text is shown, and ends no work
    try:
        reading.encodable(argv)
        if not argv or argv[0] in ("-h", "--help"):
            print(usage())
            raise SystemExit(0 if argv else 2)
        if argv[0] not in (known := folders.files(Path(__file__).parent)):
            raise unknown("command", argv[0], known)
        raise SystemExit(importlib.import_module(f"{__name__}.{argv[0]}").run(argv[1:]))
    except BadInput as error:
        _refuse(str(error))
    except (MemoryError, OSError) as error:
        if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno is None):
            raise
        _refuse(_of_system(error))
    except (Exception, SystemExit) as error:
        if "can't allocate memory" in str(error):  # torch's own MemoryError
            _refuse(_of_system(MemoryError()))
        from pplleak import blame

        if blame.users(error) is None:
            raise
        _refuse(f"your code failed: {blame.describe(error)}")


def _refuse(message: str) -> NoReturn:
    print(f"pplleak: {printable(' '.join(message.split()), LONGEST)}", file=sys.stderr)
    raise SystemExit(2) from None


def _of_system(error: MemoryError | OSError) -> str:
    if isinstance(error, MemoryError):
        return "the machine has not the memory for this: take a smaller network, batch or number of draws"
    from pplleak.runs import files

    if error.errno in files.FULL:
        return f"cannot write {error.filename or 'what is printed'}: {files.refused(error)}"
    name = f"cannot read or write {printable(error.filename)}: " if error.filename else ""
    return f"{name}{reading.reason(error)}: name another file or folder"


def _note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Warnings as the command line shows them: one line, without the code they came from."""
    if issubclass(category, UserWarning):
        print(f"pplleak: note: {printable(' '.join(str(message).split()), LONGEST)}", file=sys.stderr)


def script(file: str) -> None:
    """What running an inference file means: `uv run inference/hmc.py --model dlg` is an attack with that file."""
    from pplleak import programs
    from pplleak.__main__ import main as process

    path = Path(file).resolve()
    inside = path.parent == programs.folder("inference").resolve()
    process(["attack", "--inference", path.stem if inside else str(path), *sys.argv[1:]])
