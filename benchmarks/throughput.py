"""What it costs to send work elsewhere, and whether a killed worker loses any: small items through local processes and Ray.

    uv run benchmarks/throughput.py

An item is a gradient of the default network on one digit, computed `--repeats` times: some 20 ms of one core. A row for
each place, with and without a worker killed (SIGKILL) every `--every` seconds: items a second; the seconds of an item in
its worker, and the cost of an item beside them, (workers × wall − sum of the items' own seconds) / items; items that
came back, of them those that came twice, and workers killed. Workers are started before the time is taken.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import tyro

from pplleak import runs

COLUMNS = ("place", "workers", "items", "killed_every", "seconds", "items_per_second", "item_ms", "cost_ms", "done",
           "twice", "lost", "killed")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    items: int = 1_000
    workers: int = 2
    repeats: int = 12
    every: float = 20.0
    """Seconds between kills."""
    killing_items: int = 4_000
    """Items of the runs with kills: they have to last longer than that."""
    csv: Path = Path("benchmarks/results/throughput.csv")


def item(repeats: int, k: int) -> tuple[int, int, float]:
    """Which item it was, the process that did it, and its seconds there."""
    observed, begin = shared(), time.perf_counter()
    for _ in range(repeats):
        observed.client.update(observed.truth, observed.labels).materialise()
    return k, os.getpid(), time.perf_counter() - begin


@functools.cache
def shared():
    import torch

    import pplleak as pl

    torch.set_num_threads(1)
    return pl.observe(pl.Scenario(data="digits", network="mlp"))


def killer(pids: set[int], every: float, stop: threading.Event, killed: list[int]) -> None:
    while not stop.wait(every):
        for pid in sorted(pids - {os.getpid()} - set(killed)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.append(pid)
            break


def measured(place: str, settings: Settings, every: float) -> dict[str, object]:
    import throughput  # this file by its name, by which workers find it

    work = functools.partial(throughput.item, settings.repeats)
    count = settings.killing_items if every else settings.items
    cluster = "local" if place == "ray" else ""
    seen: Counter[int] = Counter()
    pids: set[int] = set()
    killed: list[int] = []
    stop = threading.Event()
    with runs.workers(1 if place == "here" else settings.workers, cluster) as executor:
        workers, own = executor.count, 0.0
        while len(pids) < workers:
            pids |= {pid for _, pid, _ in runs.spread(work, range(-4 * workers, 0), executor)}
        thread = threading.Thread(target=killer, args=(pids, every or 1e6, stop, killed))
        thread.start()
        begin = time.perf_counter()
        try:
            for k, pid, spent in runs.spread(work, range(count), executor):
                seen[k] += 1
                own += spent
                pids.add(pid)
        finally:
            seconds = time.perf_counter() - begin
            stop.set()
            thread.join()
    return {"place": place, "workers": workers, "items": count, "killed_every": every or "",
            "seconds": round(seconds, 2), "items_per_second": round(count / seconds, 1),
            "item_ms": round(1000 * own / count, 2),
            "cost_ms": round(1000 * (workers * seconds - own) / count, 2), "done": len(seen),
            "twice": sum(n > 1 for n in seen.values()), "lost": count - len(seen), "killed": len(killed)}  # fmt: skip


def main(settings: Settings) -> None:
    made: list[dict[str, object]] = []
    for place, every in (("here", 0.0), ("processes", 0.0), ("ray", 0.0), ("processes", settings.every),
                         ("ray", settings.every)):  # fmt: skip
        made.append(measured(place, settings, every))
        print(made[-1], flush=True)
        runs.table(settings.csv, made, COLUMNS)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
