"""What is slow to import is imported where it is used: each line of these lists is a second of every command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from image_files import mnist, pictures, write

PLOTS_AND_TABLES = "arviz arviz_stats xarray pandas matplotlib scipy.stats scipy.optimize skimage"
SELDOM = f"{PLOTS_AND_TABLES} zuko sklearn torchvision torch._dynamo"
CHANNELS = "from pplleak import channels; channels.Gaussian, channels.get('topk')"
SAVED = (  # and scored, as an attack does at its end
    "import numpy; from pplleak.posterior import Posterior, metrics; x = numpy.zeros((1, 2, 1, 1, 8, 8)); "
    "Posterior(x=x, y=numpy.zeros((1, 2, 1), int), mode=x[0, 0], kind='sampler').save('p.nc'); "
    "metrics.ssim(x[0, 0], x[0, 0])"
)
# Statements in the order in which one interpreter runs them, and modules of which none may be there afterwards.
LEFT = {
    "import pplleak.progress": "torch rich numpy",
    CHANNELS: SELDOM,
    "from pplleak import data; data.private('images')": SELDOM,
    "data.private('mnist', '.')": SELDOM,
    "from pplleak import priors; priors.get('gaussian'); import pplleak.priors.labels": (
        f"{SELDOM} pplleak.priors.vae pplleak.priors.flow"
    ),
    "import pplleak.posterior, pplleak.inference.svi, pplleak.inference.map": SELDOM,
    SAVED: "arviz arviz_stats xarray pandas matplotlib scipy.stats skimage sklearn",
    "import rich.console": "torchvision",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The modules that are there after each statement, in one interpreter for all of them: what one imports is there
    after every later one, too."""
    folder = tmp_path_factory.mktemp("imports")
    mnist(folder)
    for half in ("train", "test"):
        write(folder / "images" / half / "cat" / "0.png", pictures(1, 5, 6, 3)[0])
    code = (
        "import json, sys\n"
        "for statement in sys.argv[1:]:\n"
        "    exec(statement)\n"
        "    print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *LEFT], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {s: set(json.loads(line)) for s, line in zip(LEFT, done.stdout.splitlines(), strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize(("statement", "modules"), LEFT.items())
def test_what_is_slow_is_left_until_it_is_needed(statement: str, modules: str, loaded: dict[str, set[str]]) -> None:
    assert not set(modules.split()) & loaded[statement]


@pytest.mark.slow
def test_only_the_channels_that_are_asked_for_are_imported(loaded: dict[str, set[str]]) -> None:
    opened = {m.removeprefix("pplleak.channels.") for m in loaded[CHANNELS] if m.startswith("pplleak.channels.")}
    assert opened == {"_base", "_entrywise", "gaussian", "topk"}


@pytest.mark.slow
def test_what_is_loaded_is_seen(loaded: dict[str, set[str]]) -> None:
    assert "rich.console" not in loaded[CHANNELS] and "rich.console" in loaded["import rich.console"]
