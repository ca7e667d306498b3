"""The examples in docstrings run, and show what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def with_examples() -> list[str]:
    """Every module whose source holds a prompt, by its importable name."""
    names = []
    for folder, package in (("pplleak", "pplleak"), ("models", "pplleak.models"), ("inference", "pplleak.inference")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                names.append(".".join([package, *(p for p in parts if p != "__init__")]))
    return names


def test_there_are_examples() -> None:
    assert "pplleak.settings" in with_examples()


@pytest.mark.parametrize("name", with_examples())
def test_the_examples_of_a_module_show_what_they_say(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert found.attempted and not found.failed


def test_a_wrong_example_would_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(optionflags=FLAGS).run(wrong).failed == 1
    assert "Expected" in capsys.readouterr().out
