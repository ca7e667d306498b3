"""Kills without warning: what a run that was killed loses, and whether the same command ends as one that was not.

    uv run benchmarks/kills.py

Every long command is run once undisturbed, and then killed (SIGKILL) again and again: before a file operation (opening a
file to write, fsync, rename), in the middle of a write (half of the file is there), or at a moment of its time. The same
command is then run again. A row a kill in benchmarks/results/kills.csv: where, how many items (attacks, stretches of a
training between two checkpoints, epochs of a fit) were begun twice, and whether every file below the folder is the same, byte
for byte, as that of the undisturbed run, and no other is there. Clocks stand still (`warm`). Goes on where it was left.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import warm
from rich.console import Console
from warm import Ended, Event

from pplleak import markdown, runs

OUT = Path(__file__).parent / "results" / "kills.csv"
COLUMNS = {"command": str, "kill": int, "where": str, "begun": int, "items": int, "redone": int, "exit_code": int,
           "identical": bool}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    writes: int = 9
    """Kills of each command at a file operation, evenly spread over them."""
    moments: int = 4
    """Kills of each command at a moment of its time, drawn from --seed."""
    seed: int = 0
    commands: tuple[str, ...] = tuple(warm.LONG)
    csv: Path = OUT


def killed(argv: list[str], folder: Path, at: int, half: bool) -> Ended:
    """A command that is killed before its event number `at`; with `half`, after half of the file was written."""

    def hook(number: int, event: Event) -> None:
        if number == at:
            if half:
                os.truncate(event.path, os.path.getsize(event.path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return warm.run(argv, folder, hook)


def killed_after(argv: list[str], folder: Path, seconds: float) -> Ended:
    """A command that is killed after so many seconds; sooner, where it has ended before."""
    while True:
        running = warm.start(argv, warm.afresh(folder))
        time.sleep(seconds)
        os.kill(running.process, signal.SIGKILL)
        if (ended := running.wait()).code:
            return ended
        seconds *= 0.7


def main(settings: Settings) -> None:
    warm.warm()
    table = runs.Rows(settings.csv, COLUMNS, ("command", "kill"))
    done = {table.about(r) for r in table.read()}
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        for command in settings.commands:
            numbers = [k for k in range(settings.writes + settings.moments) if (command, k) not in done]
            if not numbers:
                continue
            argv = warm.LONG[command]
            whole, expected = warm.undisturbed(argv, Path(scratch) / "whole")
            writes = [k for k, e in enumerate(whole.events) if e.writes]
            chosen = [writes[k] for k in np.linspace(0, len(writes) - 1, settings.writes).round().astype(int)]
            moments = np.random.default_rng(settings.seed).uniform(0.05, 0.95, settings.moments)
            for k in numbers:
                folder = warm.afresh(Path(scratch) / "killed")
                if k < settings.writes:
                    event = whole.events[chosen[k]]
                    half = event.kind == "fsync" and event.name.endswith(".part") and k % 2 == 1
                    where = f"{'half-way through writing' if half else f'before {event.kind} of'} {event.name}"
                    first = killed(argv, folder, chosen[k], half)
                else:
                    share = moments[k - settings.writes]
                    where = f"after {share * whole.seconds:.1f} s of {whole.seconds:.1f} s"
                    first = killed_after(argv, folder, share * whole.seconds)
                assert first.code == -signal.SIGKILL, (where, first.err)
                again = warm.run(argv, folder)
                row = {
                    "command": command, "kill": k, "where": where, "begun": len(first.items),
                    "items": len(whole.items), "redone": len(set(first.items) & set(again.items)),
                    "exit_code": again.code, "identical": warm.files(folder / warm.OUT) == expected,
                }  # fmt: skip
                table.add([row])
                console.print(*row.values(), highlight=False)
            warm.afresh(Path(scratch) / "whole")
    console.print(page([r for r in table.read() if r["command"] in settings.commands]), highlight=False)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the page: a line a command, and one of all."""
    lines = [["command", "kills", "ended after a rerun", "most items redone", "files identical"]]
    by_command = {f"`{name}`": [r for r in rows if r["command"] == name] for name in dict.fromkeys(
        r["command"] for r in rows)}  # fmt: skip
    for name, mine in {**by_command, "all": rows}.items():
        ended, same = sum(r["exit_code"] == 0 for r in mine), sum(r["identical"] for r in mine)
        lines.append([name, *map(str, (len(mine), ended, max(r["redone"] for r in mine), same))])
    return markdown.table(lines)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
