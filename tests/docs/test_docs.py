"""What the documentation shows runs, at tiny size: example files, the lines of the face; what it names exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import command as run

from pplleak import channels, priors, programs
from pplleak.client import networks
from pplleak.federation import defences
from pplleak.posterior import Posterior

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = {
    "model": programs.names("models"),
    "inference": [programs.AUTO, *programs.names("inference")],
    "prior": priors.names(),
    "channel": ["none", *channels.names()],
    "defence": ["none", *defences.names()],
    "network": networks.names(),
}
MAP = ["--inference", "map", "--inference.starts", "2", "--inference.steps", "5"]


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


@pytest.mark.slow
def test_the_example_inference_attacks(workshop: Path) -> None:
    settings = ["--inference.chains", "4", "--inference.draws", "5", "--inference.warmup", "2"]
    assert run("attack", "--inference", "./mala.py", *settings) == 0
    assert Posterior.load("attack/posterior.nc").x.shape[:2] == (4, 5)


@pytest.mark.slow
@pytest.mark.process
def test_the_example_client_shares_a_gradient_that_is_wrapped_and_attacked(workshop: Path) -> None:
    done = subprocess.run([sys.executable, "my_client.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (shared,) = workshop.glob("*.safetensors")
    network = ("--network", "my_net.py:build")
    known = ("--sigma", "0.02", "--shared-labels", "2")
    wrap = ("--gradient", shared.name, "--input-shape", "1", "8", "8", *known, "--out", "observation.safetensors")
    assert run("observe", *wrap, *network) == 0
    assert run("attack", "--observed", "observation.safetensors", *network, *MAP) == 0


def face(page: str) -> str:
    """The Python lines of a page that begin with the library's import."""
    return re.findall(r"```python\n(import pplleak as pl\n.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)[0]


@pytest.mark.slow
def test_the_lines_of_the_readme_run_and_the_tour_has_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = "settings={'starts': 2, 'steps': 20, 'chains': 2, 'draws': 5, 'warmup': 2}"
    exec(face("README.md").replace("seed=0)", f"seed=0, {quick})"), {})
    assert Path("attack.png").stat().st_size > 1000
    assert face("README.md") == face("docs/tour.md")


def unheard_of(text: str) -> list[str]:
    """What a page names and does not exist: models, inferences, priors, channels, defences, networks, and imports."""
    used = re.findall(rf"--({'|'.join(NAMES)})[ =]([a-z][^\s`)]*)", text)
    words = [(flag, name.partition(":")[0]) for flag, value in used if ".py" not in value for name in value.split(",")]
    imports = re.findall(r"^from (pplleak[\w.]*) import ([\w, ]+)$", text, re.M)
    members = [(where, name.strip()) for where, names in imports for name in names.split(",")]
    return [
        *(f"--{flag} {name}" for flag, name in words if name and name not in NAMES[flag]),
        *(f"{where}.{name}" for where, name in members if not importable(where, name)),
    ]


def importable(where: str, name: str) -> bool:
    """Whether `from where import name` would do."""
    try:
        exec(f"from {where} import {name}", {})
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_exists(page: Path) -> None:
    assert unheard_of(page.read_text(encoding="utf-8")) == []


def test_a_name_that_is_gone_is_seen() -> None:
    assert unheard_of("`pplleak attack --model vae --inference map,hcm`") == ["--model vae", "--inference hcm"]
    assert unheard_of("from pplleak.priors import uniformly\n") == ["pplleak.priors.uniformly"]
