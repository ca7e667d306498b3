"""``pplleak`` and ``python -m pplleak``: Ctrl-C and SIGTERM are answered in one line, even while torch is imported.

Both raise KeyboardInterrupt where the work is, and what is finished is kept; the exit codes are 130 and 143.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


def main(argv: Sequence[str] | None = None) -> None:
    """The command line, as a process of its own.

    Args:
        argv: the words of it; those of the process if not given.
    """
    heard: list[int] = []
    ended: list[Any] = []
    handler = _handler(heard)
    if argv is None:  # the process is ours
        gc.set_threshold(GARBAGE)
        atexit.register(_leave, ended)  # what is registered first is called last
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
            signal.signal(signal.SIGINT, handler)
    code: Any = 0
    try:
        signal.signal(signal.SIGTERM, handler)
        from pplleak.cli import main as run

        run(argv)
    except SystemExit as end:
        code = end.code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        print(f"pplleak: {str(stop) or 'interrupted before anything could be kept'}", file=sys.stderr)
        code = INTERRUPTED
    code = TERMINATED if signal.SIGTERM in heard and code == INTERRUPTED else code
    code = _printed(code)
    ended.append(code)
    raise SystemExit(code)


LONGEST_IMPORT = 5.0  # seconds
GARBAGE = 10_000  # new objects between two looks for garbage; at Python's 700 these take a tenth of all imports


def _handler(heard: list[int]) -> Callable[[int, Any], None]:
    """What raises KeyboardInterrupt at a signal, and notes which; where something is being imported, once that is done:
    some packages catch whatever is raised within them, and the signal would be lost, or be told as a broken package."""
    first: list[float] = []  # when a signal that waits came

    def handle(number: int, frame: Any) -> None:
        first.append(time.monotonic())
        if _importing(frame) and first[-1] - first[0] < LONGEST_IMPORT:
            again = threading.Timer(0.05, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        first.clear()
        heard.append(number)
        raise KeyboardInterrupt

    return handle


def _importing(frame: Any) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


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
