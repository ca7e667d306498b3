"""What the documentation shows runs: its example files, at tiny size."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pplleak import cli
from pplleak.posterior import Posterior

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MAP = ["--inference", "map", "--inference.starts", "2", "--inference.steps", "5"]


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(argv))
    return int(stopped.value.code or 0)


@pytest.fixture()
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with copies of the examples."""
    for example in EXAMPLES.glob("*.py"):
        shutil.copy(example, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_model_is_attacked(workshop: Path) -> None:
    assert run("attack", "--model", "./smooth_dlg.py", *MAP) == 0


def test_the_example_channel_is_believed_in(workshop: Path) -> None:
    assert run("attack", "--model", "./relative_noise.py", *MAP) == 0


def test_the_example_inference_attacks(workshop: Path) -> None:
    settings = ["--inference.chains", "4", "--inference.draws", "5", "--inference.warmup", "2"]
    assert run("attack", "--inference", "./mala.py", *settings) == 0
    assert Posterior.load("attack/posterior.nc").x.shape[:2] == (4, 5)


@pytest.mark.process
def test_the_example_client_shares_a_gradient_that_is_wrapped_and_attacked(workshop: Path) -> None:
    done = subprocess.run([sys.executable, "my_client.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (shared,) = workshop.glob("*.safetensors")
    network = ("--network", "my_net.py:build")
    wrap = ("--gradient", shared.name, "--input-shape", "1", "8", "8", "--sigma", "0.02",
            "--out", "observation.safetensors")  # fmt: skip
    assert run("observe", *wrap, *network) == 0
    assert run("attack", "--observed", "observation.safetensors", *network, *MAP) == 0
