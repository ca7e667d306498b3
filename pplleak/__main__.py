"""``pplleak`` and ``python -m pplleak``: Ctrl-C and SIGTERM are answered in one line, even while torch is imported.

Both raise KeyboardInterrupt where the work is, and what is finished is kept; the exit codes are 130 and 143.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


def main(argv: Sequence[str] | None = None) -> None:
    """The command line, as a process of its own.

    Args:
        argv: the words of it; those of the process if not given.
    """
    terminated: list[int] = []
    ended: list[Any] = []
    if argv is None:  # the process is ours
        atexit.register(_leave, ended)  # what is registered first is called last
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
            signal.signal(signal.SIGINT, _interrupt)

    def terminate(number: int, frame: Any) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    code: Any = 0
    try:
        signal.signal(signal.SIGTERM, terminate)
        from pplleak.cli import main as run

        run(argv)
    except SystemExit as end:
        code = end.code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        print(f"pplleak: {str(stop) or 'interrupted before anything could be kept'}", file=sys.stderr)
        code = INTERRUPTED
    code = TERMINATED if terminated and code == INTERRUPTED else code
    code = _printed(code)
    ended.append(code)
    raise SystemExit(code)


LONGEST_IMPORT = 5.0  # seconds


def _interrupt(number: int, frame: Any, since: float | None = None) -> None:
    """Raise KeyboardInterrupt; where something is being imported, once that is done: some packages catch whatever is
    raised within them, and the Ctrl-C would be lost, or be told as a package that is broken."""
    since = time.monotonic() if since is None else since
    here, importing = frame, False
    while here is not None and not importing:
        importing, here = here.f_code.co_filename == "<frozen importlib._bootstrap>", here.f_back
    if not importing or time.monotonic() - since > LONGEST_IMPORT:
        signal.signal(signal.SIGINT, _interrupt)
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, lambda n, f: _interrupt(n, f, since))
    again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def _leave(ended: list[Any]) -> None:
    """End the process at once: taking torch's tracer apart, object by object, takes the interpreter two seconds."""
    if ended and (ended[0] is None or isinstance(ended[0], int)):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0] or 0)


def _printed(code: Any) -> Any:
    """The exit code, once all that was printed has gone out: at the exit, nobody answers for what does not."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else: whoever reads it has seen enough
            print(f"pplleak: cannot print: {error.strerror}; what was finished is kept", file=sys.stderr)
            return 2
    return code


if __name__ == "__main__":
    main()
