"""What is slow to import is imported where it is used: each line of these lists is a second of every command."""

from __future__ import annotations

import subprocess
import sys

import pytest

PLOTS_AND_TABLES = "arviz arviz_stats xarray pandas matplotlib scipy.stats scipy.optimize skimage"
SELDOM = f"{PLOTS_AND_TABLES} zuko torchvision torch._dynamo"


def loaded(statement: str, modules: str) -> list[str]:
    """Those of the modules that a statement loads in a new interpreter."""
    code = f"{statement}\nimport sys\nprint(*[m for m in {modules.split()} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "modules"),
    [
        ("import pplleak.progress", "torch rich numpy"),
        ("import pplleak.posterior, pplleak.inference.svi, pplleak.inference.map", SELDOM),
    ],
)
def test_what_is_slow_is_left_until_it_is_needed(statement: str, modules: str) -> None:
    assert loaded(statement, modules) == []


def test_what_is_loaded_is_seen() -> None:
    assert loaded("import rich.console", "torch rich numpy") == ["rich"]
