"""The arrows of the design, read off the imports: models/ → pplleak ← inference/, and programs.py the only door."""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pplleak import programs

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "pplleak").rglob("*.py"))
MODELS = sorted((ROOT / "models").rglob("*.py"))
INFERENCE = sorted((ROOT / "inference").rglob("*.py"))
DOOR = ROOT / "pplleak" / "programs.py"
CODE_LINES = 320  # of one file, without docstrings, comments and blank lines


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache  # a library file is asked about by several tests
def imports(source: str, package: str) -> set[str]:
    """Every module that the source of a module of `package` imports, absolutely named; by `importlib`, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(p for p in (base, node.module) if p)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("pplleak."):
            found.add(node.value)  # importlib.import_module("pplleak.models.dlg")
        elif isinstance(node, ast.JoinedStr) and isinstance(first := node.values[0], ast.Constant):
            found.add(str(first.value))  # import_module(f"pplleak.{kind}.{name}")
    return found


def offenders(paths: Iterable[Path], wrong: Callable[[str], object]) -> list[str]:
    """The files whose source is wrong; one test goes through all files, since a test each costs more than the look."""
    looked_at = {short(p): bool(wrong(p.read_text())) for p in sorted(paths)}
    assert looked_at, "no file was looked at"
    return [name for name, is_wrong in looked_at.items() if is_wrong]


def reaches(source: str, package: str, *forbidden: str) -> set[str]:
    """The imports that lead into a forbidden package; a computed name counts as leading anywhere."""
    return {
        name
        for name in imports(source, package)
        if name == "pplleak." or any(name == f or name.startswith(f"{f}.") for f in forbidden)
    }


def test_a_model_never_imports_an_inference() -> None:
    assert offenders(MODELS, lambda s: reaches(s, "pplleak.models", "pplleak.inference", "inference")) == []


def test_an_inference_never_imports_a_model() -> None:
    assert offenders(INFERENCE, lambda s: reaches(s, "pplleak.inference", "pplleak.models", "models")) == []


def test_an_inference_imports_no_other() -> None:
    """What two of them need lies in pplleak/density."""
    assert offenders(INFERENCE, lambda s: reaches(s, "pplleak.inference", "pplleak.inference", "inference")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from pplleak.inference.hmc import whitened",
        "from pplleak.inference import laplace",
        "from . import _walls",
        "from ._walls import Field",
        "def late():\n    from pplleak.inference.laplace import climb_by_newton",
    ],
)
def test_an_inference_that_imports_another_is_seen(source: str) -> None:
    assert reaches(source, "pplleak.inference", "pplleak.inference", "inference")


@pytest.mark.slow
def test_the_library_imports_neither() -> None:
    forbidden = ("pplleak.models", "pplleak.inference", "models", "inference")
    assert offenders(set(LIBRARY) - {DOOR}, lambda s: reaches(s, "pplleak", *forbidden)) == []


def test_the_loader_is_the_one_door_and_opens_it_by_a_computed_name_only() -> None:
    found = reaches(DOOR.read_text(), "pplleak", "pplleak.models", "pplleak.inference")
    assert found == {"pplleak."}


@pytest.mark.parametrize(
    "source",
    [
        "import pplleak.inference.hmc",
        "from pplleak.inference import hmc",
        "from pplleak import inference",
        "from pplleak.inference.hmc import run",
        "from ..inference import hmc",
        "def late():\n    from pplleak.inference.hmc import run",
        "import importlib\nimportlib.import_module('pplleak.inference.hmc')",
        "import importlib\nimportlib.import_module(f'pplleak.{kind}.hmc')",
    ],
)
def test_the_reader_of_imports_sees_every_way_in(source: str) -> None:
    assert reaches(source, "pplleak.models", "pplleak.inference")


@pytest.mark.parametrize("source", ["import pyro", "from pplleak import channels, priors", "from . import dlg"])
def test_the_reader_of_imports_accuses_nobody_else(source: str) -> None:
    assert not reaches(source, "pplleak.models", "pplleak.inference")


def looked_up(source: str) -> list[str]:
    """The program files that a source opens by a name written into it: `programs.inference("refractive").declines`.

    A file of models/ or inference/ that the user chose is another thing: its name is in a variable.
    """
    asked: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = [*node.args, *(k.value for k in node.keywords)]
        words = [part.value for part in given if isinstance(part, ast.Constant)]
        by_kind = called in ("load", "locate") and len(words) > 1 and words[0] in programs.ENTRY
        if by_kind or (called in ("model", "inference") and words):
            asked.append(f"{called}: {words}")
    return asked


@pytest.mark.slow
def test_the_library_knows_no_program_by_its_name() -> None:
    """What the library needs of an inference, it holds itself: in pplleak/density."""
    assert offenders(set(LIBRARY) - {DOOR}, looked_up) == []


@pytest.mark.parametrize(
    "source",
    [
        'programs.inference("refractive").declines(model, observed, client)',
        'programs.model("dlg").labels',
        'programs.load("inference", "hmc")',
        'load(kind="inference", name="hmc")',
        'getattr(locate("models", "dlg"), "stem")',
    ],
)
def test_a_program_that_is_looked_up_by_its_name_is_seen(source: str) -> None:
    assert looked_up(source)


@pytest.mark.parametrize(
    "source",
    [
        "programs.model(model).labels",
        "programs.declining()",
        'programs.load("models", args.model)',
        'programs.locate("models", name)',
        'load("dataset", "mnist")',
    ],
)
def test_a_program_that_the_user_chose_may_be_looked_up(source: str) -> None:
    assert not looked_up(source)


def test_every_file_begins_with_a_docstring() -> None:
    assert offenders([*LIBRARY, *MODELS, *INFERENCE], lambda s: not ast.get_docstring(ast.parse(s))) == []


@pytest.mark.parametrize("path", [ROOT / "models" / "__init__.py", ROOT / "inference" / "__init__.py"], ids=short)
def test_the_two_folders_hold_programs_and_nothing_else(path: Path) -> None:
    assert len(ast.parse(path.read_text()).body) == 1
    assert not [p for p in path.parent.iterdir() if p.is_dir() and p.name != "__pycache__"]


def entries() -> list[tuple[programs.Kind, str]]:
    kinds: list[programs.Kind] = ["models", "inference"]
    return [(kind, name) for kind in kinds for name in programs.names(kind)]


def test_every_program_has_an_entry_with_a_docstring_and_a_help_line_for_each_setting() -> None:
    for kind, name in entries():
        function = programs.load(kind, name)
        assert function.__doc__, (kind, name)
        found = programs.settings(function)
        assert found, (kind, name)
        assert [s.name for s in found if not s.help] == [], (kind, name)


def code_lines(source: str) -> int:
    """Lines that hold code."""
    doc: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            doc |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in empty:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - doc)


def test_lines_of_code_are_counted_without_docstrings_comments_and_blanks() -> None:
    assert code_lines('"""Doc.\n\nMore.\n"""\n\n# comment\nx = (\n    1\n)  # here\n') == 3


@pytest.mark.slow
def test_no_file_is_too_long_to_read_in_one_sitting() -> None:
    assert offenders([*LIBRARY, *MODELS, *INFERENCE], lambda s: code_lines(s) > CODE_LINES) == []


def test_a_file_that_is_wrong_is_named() -> None:
    assert offenders([DOOR, LIBRARY[0]], lambda s: s == DOOR.read_text()) == [short(DOOR)]
