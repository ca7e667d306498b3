"""Processes of this machine: one that is killed takes no work with it, and all end with whoever started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from pplleak.runs.executors import TRIES, WorkerLost, Workers


class _Processes:
    """A thread for each process, which sends it a task, waits for the answer, and starts another where it was killed.
    A process starts when there is work for it."""

    def __init__(self, count: int, start: Callable[[], tuple[SpawnProcess, Connection]]) -> None:
        self.count, self._start = count, start
        self._waiting: queue.SimpleQueue[tuple[Future[Any], bytes] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open = True

    def submit(self, function: Callable[[Any], Any], task: Any, /) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            self._waiting.put((future, pickle.dumps((function, task))))
        except Exception as error:
            future.set_exception(error)
        if len(self._threads) < self.count:
            self._threads.append(threading.Thread(target=self._look_after, daemon=True))
            self._threads[-1].start()
        return future

    def _look_after(self) -> None:
        """What one process does, and its successors, until there is no more."""
        worker: tuple[SpawnProcess, Connection] | None = None
        while (job := self._waiting.get()) is not None:
            future, packed = job
            if not self._open or not future.set_running_or_notify_cancel():
                continue
            for _ in range(TRIES):
                try:
                    if worker is None or not worker[0].is_alive():
                        _ended(worker)
                        worker = self._start()
                    worker[1].send_bytes(packed)
                    good, answer = pickle.loads(worker[1].recv_bytes())
                except (EOFError, ConnectionError):  # it was killed
                    _ended(worker)
                    worker = None
                    if not self._open:
                        break
                    continue
                except Exception as error:  # no process can be had, or its answer cannot be unpacked here
                    good, answer = False, error
                (future.set_result if good else future.set_exception)(answer)
                break
            else:
                future.set_exception(WorkerLost())
        _ended(worker)

    def close(self) -> None:
        """Nothing begins any more, and nobody waits for what has begun."""
        self._open = False
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()


def _ended(worker: tuple[SpawnProcess, Connection] | None) -> None:
    """What is left of a process that has ended, or ends when its line does, put away."""
    if worker is not None:
        worker[1].close()
        worker[0].join()


@contextlib.contextmanager
def processes(count: int) -> Iterator[Workers]:
    """So many fresh Python processes, of one torch thread each. They leave Ctrl-C and SIGTERM to this one, and end with
    it, however it ends: when this block is left, what they have not finished is dropped at once."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()  # theirs is at its end when nobody holds ours: we have left, or died
    executor = _Processes(count, lambda: _started(context, theirs))
    try:
        yield executor
    finally:
        ours.close()
        executor.close()
        theirs.close()


def _started(context: SpawnContext, parent: Connection) -> tuple[SpawnProcess, Connection]:
    """A process, and the line to it. It starts with Ctrl-C and SIGTERM blocked: neither reaches it half-started."""
    line, its = context.Pipe()
    process = context.Process(target=_work, args=(its, parent), daemon=True)
    masked = hasattr(signal, "pthread_sigmask")  # not on Windows
    if masked:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    its.close()  # so that the line is at its end when the process is
    return process, line


def _work(line: Connection, parent: Connection) -> None:
    """What a process does: a task after the other."""
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it where the work opens it
    if (torch := sys.modules.get("torch")) is not None:  # the caller's own script has opened it already
        torch.set_num_threads(1)
    while True:
        try:
            packed = line.recv_bytes()
        except EOFError:
            return
        line.send_bytes(_answer(packed))


def _answer(packed: bytes) -> bytes:
    try:
        function, task = pickle.loads(packed)
        return pickle.dumps((True, function(task)))
    except BaseException as error:  # also what cannot be unpacked, or packed: it is told where the result would be
        try:
            made = pickle.dumps((False, error))
            pickle.loads(made)
        except Exception:
            made = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
        return made


def _end_with(parent: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os._exit(1)
