"""Full disks, SIGTERM, Ctrl-C and a second process: what each command says, and what it leaves.

    uv run benchmarks/interruptions.py

Every command runs once undisturbed, and then is disturbed in each of these ways; after that the same command is run again.

    full K       its folder is a tmpfs of 200 kB that has K kB left (needs the right to mount; then it is made larger)
    SIGINT WHEN, SIGTERM WHEN   the signal at its begin, in its second item (an attack, a stretch of a training, an epoch), within a
                 write, while the figure is drawn
    twice        another process runs the same command in the same folder meanwhile

A row each in benchmarks/results/interruptions.csv: the exit code, the line that was said, whether a traceback was shown, and
whether after the second run every file is the same, byte for byte, as that of the undisturbed run. Goes on where it was left.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro
import warm
from rich.console import Console
from warm import Ended, Event, Hook

from pplleak import markdown, runs

OUT = Path(__file__).parent / "results" / "interruptions.csv"
COLUMNS = {"command": str, "what": str, "exit_code": int, "said": str, "traceback": bool, "again": int | None,
           "identical": bool}  # fmt: skip
LEFT = (0, 40)  # kB
MOMENTS = ("begin", "item", "fsync", "figure")
WAYS = [*(f"full {k}" for k in LEFT), *(f"{s} {m}" for s in ("SIGINT", "SIGTERM") for m in MOMENTS), "twice"]
COMMANDS = {**warm.LONG, **warm.SHORT}


@dataclasses.dataclass(frozen=True)
class Settings:
    commands: tuple[str, ...] = tuple(COMMANDS)
    csv: Path = OUT


def interrupting(which: signal.Signals, moment: str, events: Sequence[Event]) -> Hook | None:
    """A hook that sends a signal at a moment; None where the command has no such moment."""
    places = [k for k, e in enumerate(events) if e.kind == moment]
    if not places:
        return None
    at = places[min(1, len(places) - 1)] if moment == "item" else places[len(places) // 2]

    def hook(number: int, event: Event) -> None:
        if number == at and moment == "item":  # a moment later
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), which))
            signal.setitimer(signal.ITIMER_REAL, 0.02)
        elif number == at:
            os.kill(os.getpid(), which)

    return hook


@contextmanager
def small_disk(folder: Path, left: int) -> Iterator[None]:
    """The folder as a file system of 200 kB with so many kB left; the files in it are still there afterwards."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], check=True)
    try:
        ballast = folder / "ballast"
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        ballast.write_bytes(bytes(max(0, free - 1024 * left)))
        yield
        ballast.unlink()
        kept = warm.files(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    for name, content in kept.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def meeting(argv: list[str], folder: Path) -> tuple[Ended, Ended]:
    """Two processes with one folder: the first waits in its first write until the other has ended."""
    go = folder / "go"

    def waiting(number: int, event: Event) -> None:
        until = time.monotonic() + 120
        while event.kind == "fsync" and not go.exists() and time.monotonic() < until:
            time.sleep(0.05)

    first = warm.start(argv, folder, waiting, tag="first")
    while not (folder / "first" / "events").exists() or "fsync" not in (folder / "first" / "events").read_text():
        time.sleep(0.05)
    second = warm.run(argv, folder)
    go.touch()
    return first.wait(), second


def said(ended: Ended) -> str:
    """The line that tells what happened."""
    lines = [*ended.err.splitlines(), *ended.out.splitlines()]
    telling = [n for n in lines if "interrupted" in n or (n.startswith("pplleak: ") and "note:" not in n)]
    return telling[-1].strip() if telling else ""


def disturbed(way: str, argv: list[str], folder: Path, whole: Ended) -> tuple[Ended, int | None] | None:
    """How the command ended, and the exit code when it was run again; None where there is no such moment."""
    kind, _, detail = way.partition(" ")
    if kind == "twice":
        first, second = meeting(argv, folder)
        return second, first.code
    if kind == "full":
        with small_disk(folder / warm.OUT, int(detail)):
            ended = warm.run(argv, folder)
    else:
        hook = interrupting(signal.Signals[kind], detail, whole.events)
        if hook is None:
            return None
        ended = warm.run(argv, folder, hook)
    done = argv[0] == "cp" and (folder / warm.OUT / "mine.py").exists()  # it does not copy over a copy
    return ended, 0 if done else warm.run(argv, folder).code


def main(settings: Settings) -> None:
    warm.warm()
    table = runs.Rows(settings.csv, COLUMNS, ("command", "what"))
    done = {table.about(r) for r in table.read()}
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        for command in settings.commands:
            ways = [w for w in WAYS if (command, w) not in done]
            if not ways:
                continue
            whole, expected = warm.undisturbed(COMMANDS[command], Path(scratch) / "whole")
            for way in ways:
                folder = warm.afresh(Path(scratch) / "disturbed")
                found = disturbed(way, COMMANDS[command], folder, whole)
                if found is None:
                    continue
                ended, again = found
                row: dict[str, Any] = {
                    "command": command, "what": way, "exit_code": ended.code,
                    "said": said(ended).replace(str(folder), ""), "traceback": "Traceback" in ended.err, "again": again,
                    "identical": warm.files(folder / warm.OUT) == expected,
                }  # fmt: skip
                table.add([row])
                console.print(*row.values(), highlight=False, markup=False, soft_wrap=True)
            warm.afresh(Path(scratch) / "whole")
    console.print(page(table.read()), highlight=False, markup=False, soft_wrap=True)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the page: exit codes, with = where the files were the same after the command was run again."""
    lines = [["", *(way.replace("SIG", "") for way in WAYS)]]
    for command in dict.fromkeys(r["command"] for r in rows):
        mine = {r["what"]: r for r in rows if r["command"] == command}
        cells = ["–" if (r := mine.get(way)) is None else
                 f"{r['exit_code']}{' =' * r['identical']}{' traceback' * r['traceback']}" for way in WAYS]  # fmt: skip
        lines.append([f"`{command}`", *cells])
    return markdown.table(lines)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
