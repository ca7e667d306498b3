"""How much memory a log-density takes: its operations are counted, one by one, before all of it is asked for.

What n rows take (chains, starts, values of a discrete site) follows from one and two of them: a row's tensors are
beside those of the others, and what all of them share is there once.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak(work: Callable[[], object]) -> int:
    """The most bytes that the tensors which some work makes take at one time."""
    with Counted() as counted:
        work()
    return counted.most


def by_rows(work: Callable[[int], object]) -> tuple[int, int]:
    """(what is there once, what a row takes): the peak of n rows is once + n each. `work` does a number of rows."""
    work(1)  # some constants are made once, and kept
    one, two = (peak(functools.partial(work, k)) for k in (1, 2))
    each = max(two - one, 0)
    return one - each, each


class Counted(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self.known = 0, 0, set[int]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under it: torch need not import its compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for t in tree_leaves(made):
            if isinstance(t, Tensor):
                self._count(t.untyped_storage())
        return made

    def _count(self, storage: UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name in self.known:
            return
        self.known.add(name)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, name, size)

    def _freed(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size
