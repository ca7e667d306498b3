"""A Ray cluster as an executor (the extra `pplleak[ray]`): its scheduler places the work, and does again what a killed
worker had begun."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from pplleak.errors import BadInput, printable
from pplleak.runs.executors import TRIES, WorkerLost, Workers

AUTO, LOCAL = "auto", "local"  # the cluster that this machine belongs to; one that is started here


class _Ray:
    """Tasks of one CPU each. What a function is bound to travels once, not with every task."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._call = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_called)
        self._sent: tuple[Callable[[Any], Any] | None, Any] = (None, None)
        self._under_way: set[Any] = set()

    @property
    def count(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, function: Callable[[Any], Any], task: Any, /) -> Future[Any]:
        if self._sent[0] is not function:
            self._sent = (function, self._ray.put(function))
        reference = self._call.remote(self._sent[1], task)
        made: Future[Any] = Future()
        made.set_running_or_notify_cancel()
        self._under_way.add(reference)
        reference.future().add_done_callback(partial(self._done, reference, made))
        return made

    def _done(self, reference: Any, made: Future[Any], inner: Future[Any]) -> None:
        self._under_way.discard(reference)
        lost = (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.OutOfMemoryError)
        if (error := inner.exception()) is None:
            made.set_result(inner.result())
        elif isinstance(error, lost):
            made.set_exception(WorkerLost())
        else:  # as the work raised it: Ray wraps it in what happened on the way
            made.set_exception(getattr(error, "cause", None) or error)

    def close(self) -> None:
        """Nothing goes on for a caller who has left."""
        for reference in list(self._under_way):
            with contextlib.suppress(Exception):  # a cluster that is gone has nothing under way
                self._ray.cancel(reference, force=True)


def _called(function: Callable[[Any], Any], task: Any) -> Any:
    return function(task)


def _require_answer(address: str) -> None:
    """Raise BadInput where nobody listens at HOST:PORT: Ray itself would try for minutes, and end the program."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) >= 2**16:
        raise BadInput(f"a Ray cluster is {AUTO}, {LOCAL}, HOST:PORT or ray://HOST:PORT, not "
                       f"'{printable(address, 80)}'")  # fmt: skip
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, UnicodeError) as error:
        raise _silent(address, error) from error


def _silent(address: str, error: Exception) -> BadInput:
    return BadInput(f"no Ray cluster answers at '{printable(address, 80)}': {printable(error, 160)}; start one with "
                    f"`ray start`, or name it {LOCAL}")  # fmt: skip


@contextlib.contextmanager
def ray(address: str, count: int = 1) -> Iterator[Workers]:
    """The workers of a Ray cluster; where this program is connected to one already, that.

    Args:
        address, count: as `pplleak.runs.workers` takes them.

    Raises:
        BadInput: Ray is not installed, no cluster answers, or a cluster is told how many workers to have.
    """
    if count > 1 and address != LOCAL:
        raise BadInput(f"a Ray cluster has the workers that it has: leave their number out, or name it {LOCAL}")
    if address not in (AUTO, LOCAL):
        _require_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # it would pack this folder, and install it anew
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it, it warns
    try:
        import ray as package
    except ImportError as error:
        raise BadInput("Ray is not installed: take the extra, pplleak[ray]") from error
    ours = not package.is_initialized()
    if ours:
        how: dict[str, Any] = {"num_cpus": count} if address == LOCAL else {}
        try:
            package.init(address=address, include_dashboard=False if how else None, log_to_driver=False,
                         logging_level=logging.ERROR, **how)  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise _silent(address, error) from error
    executor = _Ray(package)
    try:
        yield executor
    finally:
        executor.close()
        if ours:
            package.shutdown()
