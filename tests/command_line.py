"""The command line as the tests run it: in this process, in a shell, with tiny settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pplleak import cli, programs

ROOT = Path(__file__).parents[1]
TINY = {
    "map": ["starts=2", "steps=5"],
    "ensemble": ["starts=2", "steps=5"],
    "ball": ["starts=2", "steps=5", "samples=2"],
    "laplace": ["starts=2", "steps=5", "chains=2", "draws=8"],
    "svi": ["starts=2", "steps=5", "chains=2", "draws=8", "iterations=3", "particles=2"],
    "hmc": ["starts=2", "steps=5", "chains=2", "draws=8", "warmup=4"],
    "nuts": ["starts=2", "steps=5", "chains=2", "draws=4", "warmup=2", "max-tree-depth=2"],
    "elliptical": ["steps=5", "chains=2", "draws=8", "warmup=2", "thin=1"],
    "langevin": ["starts=2", "steps=5", "chains=2", "draws=8", "warmup=4", "thin=1"],
    "smc": ["islands=2", "particles=8", "moves=1", "refresh=2", "steps=5"],
    "refractive": ["starts=2", "steps=5", "chains=2", "draws=8", "warmup=4"],
    "gibbs": ["draws=8", "particles=8", "moves=1", "settle=1", "starts=2", "steps=5", "inner=1"],
    "isir": ["draws=8", "chains=4", "candidates=2", "islands=2"],
    "lamp": ["steps=3"],
    "npe": ["simulations=300", "epochs=1", "hidden=4", "proposals=64", "rounds=2", "chains=2", "draws=8"],
    "billiard": ["starts=2", "steps=5", "chains=2", "draws=8", "warmup=4"],
}


class Killed(BaseException):
    """What nothing catches, as nothing does a kill."""


def tiny(inference: str, prefix: str = "inference") -> list[str]:
    known = {s.name.replace("_", "-") for s in programs.settings(programs.load("inference", inference))}
    pairs = [s.split("=") for s in TINY.get(inference, [])]
    words = [w for n, v in pairs if n in known for w in (f"--{prefix}.{n}", v)]
    if prefix == "inference" and inference in ("refractive", "billiard"):
        words += ["--network.activation", "relu"]
    if prefix == "inference" and inference == "rgap":
        words += ["--network.activation", "tanh"]
    return words


def tiny_settings(inference: str) -> dict[str, int]:
    """The same, as the library takes them."""
    words = tiny(inference, "it")
    names = [w.removeprefix("--it.").replace("-", "_") for w in words[::2]]
    return dict(zip(names, map(int, words[1::2]), strict=True))


def run(argv: list[str]) -> int:
    """The command in this process; its exit code. An attack looks for no cause where the test does not ask: the tiny
    ones hardly ever fit, and would search for longer than they attack."""
    if argv[:1] == ["attack"] and "--explain" not in argv:
        argv = [*argv, "--explain", "False"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    return int(stopped.value.code or 0)


def command(*argv: object) -> int:
    """The same, from its words one by one."""
    return run([str(a) for a in argv])


def shell(words: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)


def one_line(argv: list[str], capsys: pytest.CaptureFixture[str], expected: str) -> None:
    assert run(argv) == 2
    shown = capsys.readouterr()
    assert expected in shown.err
    assert shown.err.startswith("pplleak: ") and shown.err.count("\n") == 1
    assert not any(noise in shown.err for noise in ("Traceback", "Trace Shapes"))
    assert "PSNR" not in shown.out


def changed(path: Path, source: Path, metadata: dict[str, object] | None = None, **tensors: torch.Tensor) -> Path:
    """A copy of an observation file with some tensors and metadata replaced."""
    with safe_open(source, "pt") as f:
        meta, own = dict(f.metadata()), {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118 (not a dict)
    meta |= {n: json.dumps(v) for n, v in (metadata or {}).items()}
    save_file({**own, **tensors}, path, meta)
    return path


def killed_while(code: str, cwd: Path, until: Callable[[], bool]) -> None:
    """Run Python, and kill it without warning once something can be seen."""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=cwd, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not until() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert until()
