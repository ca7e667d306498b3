"""Commands of the library, each in a process of its own that starts at once: what kills.py and interruptions.py share.

A process that has imported everything, and computed nothing, is forked. Its clocks stand still, so that files that hold
seconds are the same byte for byte; it tells what it begins and what it writes, and a hook may end it there. Linux.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import hashlib
import importlib
import io
import itertools
import os
import pkgutil
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a fork finds no threads of its parent

OUT = "out"
DATE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00")
CLIMB = ("starts=1", "steps=3")
CHAINS = (*CLIMB, "chains=2", "draws=60")


def _settings(prefix: str, *pairs: str) -> list[str]:
    return [word for pair in pairs for word in (f"--{prefix}.{pair.partition('=')[0]}", pair.partition("=")[2])]


SMALL = ["--network.widths", "4"]
BOTH = ["--inference", "map,laplace", *SMALL, *_settings("map", *CLIMB), *_settings("laplace", *CHAINS)]
ONE = ["--inference", "laplace", *SMALL, *_settings("inference", *CHAINS)]
FIT = ["--out", f"{OUT}/p.safetensors", "--prior.epochs", "4", "--prior.hidden", "16", "--prior.batch", "8"]
LONG = {  # commands that go on
    "compare": ["compare", *BOTH, "--count", "2"],
    "risk": ["risk", *BOTH, "--count", "2"],
    "calibrate": ["calibrate", *ONE, "--draws", "4"],
    "bits": ["bits", *ONE, "--count", "3"],
    "train": ["train", *SMALL, "--steps", "60", "--checkpoints", "0", "20", "40", "60"],
    "defend": ["defend", "--network", "mlp", *SMALL, "--steps", "0", "3", "--count", "2", "--clients", "3",
               "--defences", "none", "gaussian:sigma=0.01", *_settings("inference", "steps=3", "starts=2"),
               "--classic-steps", "3"],
    "prior fit vae": ["prior", "fit", "vae", *FIT, "--prior.latents", "4"],
    "prior fit flow": ["prior", "fit", "flow", *FIT, "--prior.rank", "4"],
}  # fmt: skip
SHORT = {
    "attack": ["attack", *SMALL, "--inference", "laplace", *_settings("inference", *CHAINS)],
    "observe": ["observe", *SMALL, "--out", f"{OUT}/o.safetensors"],
    "cp": ["cp", "dlg", f"{OUT}/mine.py"],
}


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that a command is about to do.

    kind  begin (the command itself), item (an attack, a stretch of a training, an epoch), figure, or a file operation:
          open (to write), fsync, replace
    name  of the item, or of the file without what is random in it
    path  of the file
    """

    kind: str
    name: str
    path: str = ""

    @property
    def writes(self) -> bool:
        return self.kind in ("open", "fsync", "replace")


Hook = Callable[[int, Event], None]  # called before each event, with its number


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (−9: killed), what it printed, what it began, and the seconds that it took."""

    code: int
    out: str
    err: str
    events: list[Event]
    seconds: float

    @property
    def items(self) -> list[str]:
        return [e.name for e in self.events if e.kind == "item"]


def warm() -> None:
    """Import what any command may, and compute nothing."""
    import pplleak
    from pplleak import programs

    for module in pkgutil.walk_packages(pplleak.__path__, "pplleak."):
        importlib.import_module(module.name)
    kinds: list[programs.Kind] = ["models", "inference"]
    for kind in kinds:
        for name in programs.names(kind):
            programs.load(kind, name)
    for slow in ("arviz", "scipy.stats", "sklearn.datasets", "sklearn.mixture", "skimage.metrics", "torch._dynamo",
                 "matplotlib.backends.backend_agg", "PIL.PngImagePlugin", "h5netcdf", "rich.progress"):  # fmt: skip
        importlib.import_module(slow)


@dataclasses.dataclass(frozen=True)
class Running:
    """A command that runs in `folder`; it writes to its folder `OUT`."""

    process: int
    folder: Path
    begun: float

    def wait(self) -> Ended:
        _, status = os.waitpid(self.process, 0)
        seconds = time.perf_counter() - self.begun
        lines = (self.folder / "events").read_text().splitlines()
        out, err = ((self.folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        events = [Event(*line.split("\t")) for line in lines]
        return Ended(os.waitstatus_to_exitcode(status), out, err, events, seconds)


def start(argv: list[str], folder: Path, hook: Hook = lambda number, event: None, tag: str = "") -> Running:
    """A command begun in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(word.startswith(f"{OUT}/") for word in argv):
        argv = [*argv, "--out", OUT]
    log = folder / tag
    log.mkdir(exist_ok=True)
    process = os.fork()
    if process == 0:
        _child(argv, folder, log, hook)
    return Running(process, log, time.perf_counter())


def run(argv: list[str], folder: Path, hook: Hook = lambda number, event: None) -> Ended:
    """A command from its begin to its end."""
    return start(argv, folder, hook).wait()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, without the date that ArviZ writes into a NetCDF file."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: DATE.sub(b"", content) if name.endswith(".nc") else content for name, content in found.items()}


def undisturbed(argv: list[str], folder: Path) -> tuple[Ended, dict[str, bytes]]:
    """A command that is left alone, and the files that it ends with."""
    whole = run(argv, folder)
    assert whole.code == 0, whole.err
    return whole, files(folder / OUT)


def afresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


# -- in the forked process -------------------------------------------------------------------------------------------


def _child(argv: list[str], folder: Path, log: Path, hook: Hook) -> None:
    code: Any = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        told = os.open(log / "events", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.chdir(folder)
        happens = _teller(told, hook)
        _watch(argv, happens)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        from pplleak.__main__ import main

        try:
            main(argv)
        except SystemExit as end:
            code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)  # no clean-up of the parent's


def _teller(told: int, hook: Hook) -> Callable[[str, str, str], None]:
    from pplleak.runs import leftovers

    count, begun = 0, set()

    def happens(kind: str, name: str, path: str = "") -> None:
        nonlocal count
        if kind == "item" and name in begun:
            return
        begun.add(name)
        event = Event(kind, leftovers.PART.sub(".part", name), path)
        os.write(told, f"{kind}\t{event.name}\t{path}\n".encode())
        count += 1
        hook(count - 1, event)

    return happens


def _watch(argv: list[str], happens: Callable[..., None]) -> None:
    """Tell of what is written and begun, and stop the clocks that results are told by."""
    from matplotlib.figure import Figure

    from pplleak import cli

    inside = str(Path(OUT).resolve()) + os.sep
    opened, fsync, replace, save, main = builtins.open, os.fsync, os.replace, Figure.savefig, cli.main

    def told_open(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if isinstance(file, str | os.PathLike) and set(mode) & set("wxa"):
            path = os.path.abspath(os.fspath(file))
            if path.startswith(inside):
                happens("open", os.path.basename(path), path)
        return opened(file, mode, *args, **more)

    def told_fsync(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if (path + os.sep).startswith(inside):
            happens("fsync", os.path.basename(path), path)
        fsync(handle)

    def told_replace(source: Any, target: Any) -> None:
        happens("replace", os.path.basename(target), str(target))
        replace(source, target)

    def told_save(self: Figure, *args: Any, **more: Any) -> None:
        happens("figure", "")
        save(self, *args, **more)

    def told_main(argv: list[str]) -> None:
        happens("begin", argv[0])
        main(argv)

    builtins.open = io.open = told_open  # type: ignore[assignment]
    os.fsync, os.replace = told_fsync, told_replace  # type: ignore[assignment]
    cli.main = told_main  # type: ignore[assignment]
    Figure.savefig = told_save  # type: ignore[method-assign]
    time.perf_counter = time.process_time = lambda: 0.0
    _watch_items(argv, functools.partial(happens, "item"))


def _watch_items(argv: list[str], item: Callable[[str], None]) -> None:
    from pplleak.cli import prior as prior_command
    from pplleak.federation import rounds
    from pplleak.studies.attack import attack as attacks
    from pplleak.studies.bits import bits
    from pplleak.studies.calibration import draws
    from pplleak.studies.compare import compare
    from pplleak.studies.defend import defend

    def attacking(attack: Any) -> Any:
        def told(observed: Any, model: str, inference: str, **more: Any) -> Any:
            item(f"{inference} on {hashlib.sha256(observed.g.numpy().tobytes()).hexdigest()[:8]}")
            return attack(observed, model, inference, **more)

        return told

    for module in (attacks, compare, draws, bits):
        module.attack = attacking(module.attack)  # type: ignore[attr-defined]
    steps, work, bar = rounds.step, defend.run, prior_command.bar
    flag = "--checkpoints" if "--checkpoints" in argv else "--steps"
    words = argv[argv.index(flag) + 1 :] if flag in argv else []
    kept = [int(w) for w in itertools.takewhile(str.isdigit, words)]

    def told_step(client: Any, images: Any, federation: Any, protection: Any, number: int, seed: int) -> None:
        item(f"steps to {min(k for k in kept if k >= number)} behind {protection}")
        steps(client, images, federation, protection, number, seed)

    def told_work(sweep: Any, job: Any) -> Any:
        item(f"gradient {job.index} after {job.step} steps behind {job.protection}")
        return work(sweep, job)

    def told_bar(label: str, total: int) -> Iterator[int]:
        epochs = int(argv[argv.index("--prior.epochs") + 1]) if "--prior.epochs" in argv else total
        for k in bar(label, total):
            item(f"{label} epoch {epochs - total + k}")
            yield k

    rounds.step, defend.run, prior_command.bar = told_step, told_work, told_bar  # type: ignore[assignment]
