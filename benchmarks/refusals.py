"""What is refused before memory is taken, or because it is no use: seconds and peak memory of each refusal, in a process of its own.

    uv run benchmarks/refusals.py

Each process may have 8 GiB of addresses, so that the refusals are those of any machine. A row each in benchmarks/results/refusals.csv: the exit code, the line, the seconds beyond those of an observation of a
tiny network (`start-up`, the first row, measured beside them), and the peak of the resident memory, which begins at what
torch takes. An `accepted` one is worked on, and may take what it likes. The goal: exit code 2, one line, at most 5 s beyond start-up, at most 1 GB. Goes on where it was left.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import os
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import tyro
from rich.console import Console

from pplleak import runs

OUT = Path(__file__).parent / "results" / "refusals.csv"
COLUMNS = {"what": str, "exit_code": int, "lines": int, "seconds": float, "beyond": float, "peak_mb": float,
           "said": str}  # fmt: skip
START_UP = "start-up"
ADDRESSES = 8 * 2**30
NETWORK = """
from torch import nn
def build(input_shape, num_classes):
    BODY
"""
MODEL = """
import sys, torch, pyro, pyro.distributions as dist
from pplleak import channels
def model(client, batch_size=1):
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([batch_size, *client.input_shape]).to_event(4))
    y = pyro.sample("y", client.label_prior(batch_size))
    BODY
    return pyro.sample("g", channels.Gaussian(client.update(x, y), 0.1))
"""
ATTACK = ["attack", "--inference", "map", "--explain", "False"]


def written(name: str, text: str, body: str) -> Callable[[Path], None]:
    """A file with BODY filled in."""

    def write(folder: Path) -> None:
        (folder / name).write_text(text.replace("BODY", body))

    return write


def network(body: str) -> Callable[[Path], None]:
    return written("net.py", NETWORK, body)


def model(body: str) -> Callable[[Path], None]:
    return written("model.py", MODEL, body)


def mnist(folder: Path) -> None:
    """As many images as MNIST has, black."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for half, count in (("t10k", 60_000), ("train", 1000)):
        (raw / f"{half}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 28, 28) + bytes(count * 784))
        (raw / f"{half}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + bytes(count))


def png(side: int) -> Callable[[Path], None]:
    """A well-formed grey image of side², black: a megabyte of zeros packs into a kilobyte."""

    def write(folder: Path) -> None:
        (folder / "pictures").mkdir()

        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        packer = zlib.compressobj(9)
        packed = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
        head = struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
        for k in range(3):
            (folder / "pictures" / f"{k}.png").write_bytes(content)

    return write


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe.safetensors")


def loop(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")


def nothing(folder: Path) -> None:
    del folder


PICTURES = ["--data", "pictures"]
CASES: dict[str, tuple[list[str], Callable[[Path], None]]] = {
    START_UP: (["observe", "--network.widths", "4", "--out", "o.safetensors"], nothing),
    "batch of 50,000": ([*ATTACK, "--data", "mnist", "--data-root", ".", "--batch-size", "50000"], mnist),
    "batch of 999,999": ([*ATTACK, "--batch-size", "999999"], nothing),
    "a width of 5e6": (["observe", "--network.widths", "5000000"], nothing),
    "a width of 5e9": (["observe", "--network.widths", "5000000000"], nothing),
    "widths of 5e6 and 5e6": (["observe", "--network.widths", "5000000", "5000000"], nothing),
    "vit of depth 1e6": (["observe", "--network", "vit", "--network.depth", "1000000"], nothing),
    "20,000 layers of a user": (
        ["observe", "--network", "net.py:build"],
        network("return nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(20000)), nn.Linear(64, 10))"),
    ),
    "4e8 parameters of a user": (
        ["observe", "--network", "net.py:build"],
        network("return nn.Sequential(nn.Flatten(), nn.Linear(64, 5000000), nn.Linear(5000000, 10))"),
    ),
    "images of 2000²": ([*ATTACK, *PICTURES], png(2000)),
    "images of 30,000²": ([*ATTACK, *PICTURES], png(30_000)),
    "--data /": ([*ATTACK, "--data", "/"], nothing),
    "a pipe as an observation": ([*ATTACK, "--observed", "pipe.safetensors"], fifo),
    "a link to itself as data": ([*ATTACK, "--data", "loop"], loop),
    "data of 5,000 characters": ([*ATTACK, "--data", "d" * 5000], nothing),
    "sigma of 1e-300": ([*ATTACK, "--sigma", "1e-300"], nothing),
    "seed of 2^64 - 1": ([*ATTACK, "--seed", str(2**64 - 1)], nothing),
    "1e9 local steps": ([*ATTACK, "--local-lr", ".1", "--local-steps", "1000000000"], nothing),
    "a log-density of -inf": ([*ATTACK, "--model", "model.py"], model("pyro.factor('f', torch.tensor(-torch.inf))")),
    "a log-density of NaN": ([*ATTACK, "--model", "model.py"], model("pyro.factor('f', x.sum() * torch.nan)")),
    "sys.exit() in a model": ([*ATTACK, "--model", "model.py"], model("sys.exit()")),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    csv: Path = OUT


def once(words: list[str], prepare: Callable[[Path], None]) -> tuple[int, list[str], float, float]:
    """Exit code, lines on standard error that are no notes, seconds, and the peak of the resident memory in MB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        start, child = time.perf_counter(), os.fork()
        if child == 0:
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT), 2)
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
            os.execv(sys.executable, [sys.executable, "-m", "pplleak", *words])
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - start
        lines = (folder / "said").read_text(errors="replace").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("pplleak: note:")]
    return os.waitstatus_to_exitcode(status), lines, seconds, usage.ru_maxrss / 1024


def main(settings: Settings) -> None:
    table, console = runs.Rows(settings.csv, COLUMNS, ("what",)), Console()
    rows = table.read()
    for what, (words, prepare) in CASES.items():
        if what in {row["what"] for row in rows}:
            continue
        code, lines, seconds, peak = once(words, prepare)
        begun = next((row["seconds"] for row in rows if row["what"] == START_UP), seconds)
        rows = table.add([{"what": what, "exit_code": code, "lines": len(lines), "seconds": seconds,
                           "beyond": seconds - begun, "peak_mb": peak, "said": " ".join(lines)[:200]}])  # fmt: skip
        console.print(f"{what}: code {code}, {seconds - begun:+.1f} s, {peak:.0f} MB: {' '.join(lines)[:160]}",
                      markup=False)  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
