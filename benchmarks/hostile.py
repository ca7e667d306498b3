"""Thousands of broken and forged files through the command line: refused in one line, or really valid.

uv run benchmarks/hostile.py --count 5000 --workers 2

Every input is a good file (tests/hostile.py makes one of each kind) with a few bytes or values changed, and a command
that reads it, run in a worker process as a user would: exit code, lines, seconds, and the memory above what the process
had before. A row of hostile.csv each; the same command goes on. `verdict` is

    refused    exit code 2, one line
    accepted   exit code 0: the file is still good
    failed     anything else: a traceback, another exit code, more lines, a refusal after 5 s, more than 1 GiB
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from pplleak import cli, runs  # noqa: E402

COLUMNS = {
    "number": int,
    "kind": str,
    "verdict": str,
    "code": str,
    "lines": int,
    "seconds": float,
    "mib": float,
    "said": str,
}
SECONDS, MIB, LIMIT = 5.0, 1024.0, 20  # LIMIT: seconds after which an input is stopped
WARM: list[str] = []
SHORT = ["--inference", "map", "--inference.steps", "1", "--inference.starts", "1", "--out", "out"]
NETWORK = ["--network.widths", "4"]
ATTACK = ["attack", *SHORT, "--explain", "False"]  # what is accepted need not be explained
WORDS: dict[str, list[str]] = {  # kind -> the command that reads FILE, in a folder that is its own
    "observation": [*ATTACK, "--data", "PICTURES", "--observed", "FILE"],
    "checkpoint": [*ATTACK, "--data", "PICTURES", *NETWORK, "--checkpoint", "FILE"],
    "mixture": ["prior", "show", "FILE"],
    "vae": ["prior", "show", "FILE"],
    "idx": ["observe", "--data", "mnist", "--data-root", "FOLDER", *NETWORK, "--out", "o.safetensors"],
    "rows": ["compare", "--data", "PICTURES", *NETWORK, "--inference", "map", "--count", "1", "--map.steps", "1",
             "--map.starts", "1", "--out", "out"],
}  # fmt: skip
PICTURE = ["observe", "--data", "PICTURES", *NETWORK, "--out", "o.safetensors"]


def kinds(good: dict[str, bytes]) -> list[str]:
    """The kinds of files that a command reads directly; the others are fuzzed in the tests."""
    import hostile

    return [k for k in good if k in WORDS or k in hostile.PICTURES or k in ("pfm", "idx.gz")]


@functools.cache
def good() -> dict[str, bytes]:
    """A good file of each kind, made once a process."""
    import hostile

    with tempfile.TemporaryDirectory() as folder:
        return hostile.good(Path(folder))


def place(kind: str, content: bytes, folder: Path) -> list[str]:
    """Put a file where its command looks for it; the command."""
    import hostile
    import numpy as np
    from PIL import Image

    images = folder / "pictures"  # by its full name: what is read is kept by it, and each input has a folder of its own
    images.mkdir()
    for k in range(0 if kind in hostile.PICTURES or kind == "pfm" else 3):
        Image.fromarray(np.full((2, 2), 60 * k, np.uint8)).save(images / f"{k}.png")
    if kind in hostile.PICTURES or kind == "pfm":
        (images / f"0.{kind if kind != 'pfm' else 'ppm'}").write_bytes(content)
        return _placed(PICTURE, folder)
    if kind.startswith("idx"):
        raw, end = folder / "MNIST" / "raw", kind.removeprefix("idx")
        raw.mkdir(parents=True)
        for half in ("t10k", "train"):
            (raw / f"{half}-images-idx3-ubyte{end}").write_bytes(content)
            (raw / f"{half}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 1, 2]))
        return _placed(WORDS["idx"], folder)
    if kind == "rows":
        (folder / "out").mkdir()
        (folder / "out" / "compare_images.csv").write_bytes(content)
        return _placed(WORDS["rows"], folder)
    (folder / "f.safetensors").write_bytes(content)
    return _placed(WORDS[kind], folder)


def _placed(words: list[str], folder: Path) -> list[str]:
    names = {"FILE": folder / "f.safetensors", "PICTURES": folder / "pictures", "FOLDER": folder}
    return [str(names.get(w, w)) for w in words]


def peak(reset: bool = False) -> float:
    """MiB of the most memory that this process has had since it was reset; 0 where the system does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")), 0.0)


def attempt(number: int) -> dict[str, Any]:
    """One input, and what the command line made of it."""
    import hostile

    listed = kinds(good())
    kind, seed = listed[number % len(listed)], number // len(listed)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        if kind in hostile.METADATA and seed % 2:
            (folder / "source").write_bytes(good()[kind])
            hostile.mistold(folder / "source", folder / "forged", seed)
            content = (folder / "forged").read_bytes()
        else:
            content = hostile.edited(good()[kind], seed)
        if not WARM:  # what a command imports is start-up, and no input's
            WARM.append("done")
            for warming in ("observation", "rows", "mixture"):
                with tempfile.TemporaryDirectory() as other:
                    _run(place(warming, good()[warming], Path(other)), io.StringIO(), io.StringIO(), limit=0)
        words = place(kind, content, folder)
        said, shown = io.StringIO(), io.StringIO()
        before, start = peak(reset=True), time.perf_counter()
        code = _run(words, said, shown)
        seconds, mib = time.perf_counter() - start, peak() - before
    lines = [line for line in said.getvalue().splitlines() if not line.startswith("pplleak: note:")]
    fine = (code == "2" and len(lines) == 1) or (code == "0" and not lines)
    fine = fine and mib < MIB and (code == "0" or seconds < SECONDS)  # what is accepted is worked on
    verdict = ("refused" if code == "2" else "accepted") if fine else "failed"
    return {"number": number, "kind": kind, "verdict": verdict, "code": code, "lines": len(lines), "seconds": seconds,
            "mib": mib, "said": " ".join(lines)[:300]}  # fmt: skip


def _run(words: list[str], said: io.StringIO, shown: io.StringIO, limit: int = LIMIT) -> str:
    """The exit code of a command, or the name of what came out of it; stopped after so many seconds, 0 for never."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done after {LIMIT} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            cli.main(words)
    except SystemExit as end:
        return str(end.code)
    except BaseException as error:  # what a user would see as a traceback
        said.write(f"{type(error).__name__}: {error}\n")
        return type(error).__name__
    finally:
        signal.alarm(0)
    return "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    table = runs.Rows(runs.prepare(args.out) / "hostile.csv", COLUMNS, ("number",))
    rows = table.read()
    left = sorted(set(range(args.count)) - {r["number"] for r in rows})
    try:
        with runs.workers(args.workers) as executor:
            done = runs.spread(attempt, left, executor)
            while batch := list(itertools.islice(done, 20)):
                rows = table.add(batch)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on")
    for (kind, verdict), count in sorted(Counter((r["kind"], r["verdict"]) for r in rows).items()):
        print(f"{kind:<12} {verdict:<9} {count}")
    if rows:
        verdicts = Counter(r["verdict"] for r in rows)
        print(f"{len(rows)} inputs: {dict(verdicts)}; slowest {max(r['seconds'] for r in rows):.1f} s, most memory "
              f"{max(r['mib'] for r in rows):.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
