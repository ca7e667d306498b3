"""Where work runs: here, in processes of this machine, or wherever an executor sends it.

    with runs.workers(4) as executor:
        for result in runs.spread(attack, jobs, executor): ...

An executor has one method, `submit(function, task)`, which gives a future: `add_done_callback`, `result`, `cancel` as in
`concurrent.futures`. Dask's client is one as it is; Ray is one line, `submit = lambda f, t: ray.remote(f).remote(t).future()`.
Functions and tasks travel by pickle there, and a worker writes nothing: results come back, and the caller keeps them.
"""  # noqa: E501

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

from pplleak.errors import BadInput


class Executor(Protocol):
    """Whatever runs a function elsewhere."""

    def submit(self, function: Callable[[Any], Any], task: Any, /) -> Any:
        """The future of function(task)."""


def spread[Task, Result](
    function: Callable[[Task], Result], tasks: Iterable[Task], executor: Executor
) -> Iterator[Result]:
    """function(task) for every task, as they finish. Whoever stops listening cancels what has not begun.

    Raises:
        BadInput: a worker process died.
        Exception: what the function raised, where its result would have come.
    """
    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    futures: list[Any] = []
    try:
        for task in tasks:
            futures.append(executor.submit(function, task))
            futures[-1].add_done_callback(finished.put)
        for _ in futures:
            yield finished.get().result()
    except BrokenProcessPool as error:
        raise BadInput("a worker process was killed, perhaps for want of memory: take fewer of them; what was finished "
                       "is kept") from error  # fmt: skip
    finally:
        for future in futures:
            future.cancel()


# -- here ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Later:
    """A future that is computed when it is asked for: results come in the order of their tasks, one at a time."""

    work: Callable[[], Any]

    def add_done_callback(self, function: Callable[[_Later], object]) -> None:
        function(self)

    def result(self) -> Any:
        return self.work()

    def cancel(self) -> bool:
        return True


class _Serial:
    def submit(self, function: Callable[[Any], Any], task: Any, /) -> _Later:
        return _Later(lambda: function(task))


@contextlib.contextmanager
def serial() -> Iterator[Executor]:
    """This process, a task after the other, each when its result is asked for."""
    yield _Serial()


# -- in processes ----------------------------------------------------------------------------------------------------


class _Processes(ProcessPoolExecutor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Workers start here, when they are needed: with Ctrl-C and SIGTERM blocked, so that neither ever reaches one
        half-started."""
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().submit(function, *args, **kwargs)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            return super().submit(function, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def processes(count: int) -> Iterator[Executor]:
    """So many fresh Python processes, of one torch thread each. They leave Ctrl-C and SIGTERM to this one, and end with
    it, however it ends: when this block is left, what they have not finished is dropped at once."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()  # theirs is at its end when nobody holds ours: we have left, or died
    pool = _Processes(count, context, _start, (theirs, "torch" in sys.modules))
    try:
        yield pool
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


def _start(parent: Connection, torch_is_used: bool) -> None:
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if torch_is_used:
        import torch

        torch.set_num_threads(1)
    else:  # if the work opens it later, it reads this
        os.environ["OMP_NUM_THREADS"] = "1"


def _end_with(parent: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os._exit(1)


def workers(count: int) -> AbstractContextManager[Executor]:
    """This process for one worker, as many processes for more.

    Raises:
        BadInput: there are none.
    """
    if count < 1:
        raise BadInput(f"workers must be at least 1, not {count}")
    return serial() if count == 1 else processes(count)
