"""Where a command's work runs, and which part of it: its flags, and work that travels as the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pplleak import runs
from pplleak.progress import bar

LEAVING = ("workers", "ray", "shard")  # what says where rows are made, and not what is in them
Keep = Callable[[list[dict[str, Any]]], object]
Factory = Callable[[Sequence[str]], Callable[[Any], Any]]  # of a command line: what does one job of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Where:
    """Where the work runs."""

    workers: int = 1
    """Processes of this machine that share the work, of one thread each."""
    ray: str = ""
    """Share the work over a Ray cluster instead (pplleak[ray]): auto, the one that this machine belongs to; local, one
    that is started here with --workers; HOST:PORT or ray://HOST:PORT."""
    shard: str = ""
    """i/n: only the i-th of n parts of the work. All parts may run at once, on any machines that share the folder."""


@contextlib.contextmanager
def claim(args: Any) -> Iterator[Path]:
    """The folder of a command's results: whole, or for one shard of it, beside the others."""
    runs.shard([], args.shard)  # say so before the work
    name = f"shard-{args.shard.replace('/', '-of-')}" if args.shard else ""
    with runs.claim(args.out, name) as out:
        yield out


@contextlib.contextmanager
def spread(
    args: Any, argv: Sequence[str], factory: Factory, jobs: Iterable[Any] | Callable[[int], Iterable[Any]]
) -> Iterator[Iterator[Any]]:
    """What `factory(argv)` makes of every job, as it comes. Elsewhere the command line travels, and each process reads
    it once.

    Args:
        jobs: all of them; or what gives them for a number of workers, each when one is free for it and not before.
    """
    with runs.workers(args.workers, args.ray) as executor:
        here = executor.count == 1 and not args.ray
        one = factory(argv) if here else functools.partial(_elsewhere, factory, tuple(argv))
        if callable(jobs):
            yield runs.spread(one, jobs(executor.count), executor, executor.count)
        else:
            yield runs.spread(one, jobs, executor)


def attacks(
    args: Any, argv: Sequence[str], factory: Factory, inferences: Sequence[str], table: runs.Rows, keep: Keep
) -> set[tuple[int, str]]:
    """Make the attacks on every image (--index, --count), with every inference, that a table lacks; what of all of them
    is this shard's. Ctrl-C keeps the rows that are complete.

    Args:
        table: of rows with `index` and `inference`. keep: called with the new rows of each attack.
    """
    from pplleak.studies.compare import compare

    known = table.read()
    done = {(r["index"], r["inference"]) for r in known}
    images = range(args.index, args.index + args.count)
    mine = runs.shard([(i, n) for i in images for n in inferences], args.shard)
    jobs = [job for job in mine if job not in done]
    with spread(args, argv, factory, jobs) as results:
        compare.gathered(results, len(jobs), progress=bar, known=known, keep=keep)
    return set(mine)


def _elsewhere(factory: Factory, argv: tuple[str, ...], job: Any) -> Any:
    return _made(factory, argv)(job)


@functools.lru_cache(maxsize=1)
def _made(factory: Factory, argv: tuple[str, ...]) -> Callable[[Any], Any]:
    return factory(argv)
