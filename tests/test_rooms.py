"""The rooms of the library: arrows only downwards, no circle, one place that writes, and flags named in cli/ alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "pplleak").rglob("*.py"))
ROOMS = ("cli", "studies", "posterior", "density", "federation", "channels", "client", "priors", "data", "the ground")
FACE = {"pplleak", "pplleak.__main__"}  # the front door stands outside


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(p): p for p in LIBRARY}


def room(module: str) -> str:
    """The room that a module lies in; every file directly in pplleak/ is of the ground."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "the ground"


def imported(source: str) -> set[str]:
    """Modules of pplleak that a source imports when it is run; what only types need is passed over."""
    tree, typing_only = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing_only |= {id(n) for statement in node.body for n in ast.walk(statement)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{a.name}" for a in node.names}
            names |= inner & set(MODULES) or {node.module}
    return {n for n in names if n in MODULES and n not in FACE}


def climbs(module: str, source: str) -> set[str]:
    """The imports of a module that lead to a higher room."""
    return {n for n in imported(source) if ROOMS.index(room(n)) < ROOMS.index(room(module))}


@pytest.mark.slow
def test_arrows_lead_downwards() -> None:
    """One test for all modules, as below: a test each costs more than the look. It names every module that is wrong."""
    climbing = {m: climbs(m, p.read_text()) for m, p in MODULES.items() if m not in FACE}
    assert climbing and {m: found for m, found in climbing.items() if found} == {}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pplleak.channels.gaussian", "from pplleak.federation.protection import Protection"),
        ("pplleak.programs", "from pplleak import channels"),
        ("pplleak.density.search", "def late():\n    from pplleak.posterior import collect"),
        ("pplleak.data.images", "import pplleak.client.client"),
    ],
)
def test_an_arrow_that_climbs_is_seen(module: str, source: str) -> None:
    assert climbs(module, source)


@pytest.mark.slow
def test_no_two_modules_import_each_other_by_whatever_way() -> None:
    graph = {m: imported(p.read_text()) - {m} for m, p in MODULES.items() if m not in FACE}
    for package in [m for m, p in MODULES.items() if p.name == "__init__.py" and m not in FACE]:
        graph[package] -= {m for m in MODULES if m.startswith(f"{package}.")}  # a front door leads inside
    TopologicalSorter(graph).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter({**graph, "pplleak.errors": {"pplleak.cli.attack"}}).prepare()


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
WRITES = re.compile(r"csv\.(?:DictWriter|writer)|ProcessPoolExecutor|multiprocessing|savefig\(|write_text\(")


def those_with(pattern: re.Pattern[str], modules: Iterable[str]) -> dict[str, list[str]]:
    """The modules in which the pattern is found, and what was found."""
    found = {m: pattern.findall(MODULES[m].read_text()) for m in modules}
    return {m: words for m, words in found.items() if words}


def test_flags_of_the_command_line_are_named_in_its_room_alone() -> None:
    assert those_with(FLAG, (m for m in MODULES if room(m) != "cli")) == {}
    assert those_with(FLAG, (m for m in MODULES if room(m) == "cli"))  # there are some to be seen


def test_runs_is_the_one_place_that_writes_and_opens_pools() -> None:
    assert those_with(WRITES, (m for m in MODULES if not m.startswith("pplleak.runs"))) == {}
    assert those_with(WRITES, (m for m in MODULES if m.startswith("pplleak.runs")))


def test_a_flag_a_writer_and_a_pool_are_seen() -> None:
    assert FLAG.findall("leave --local-lr out, x--y and -- are none") == ["--local-lr"]
    for line in ("csv.writer(f)", "with ProcessPoolExecutor(2) as pool:", "figure.savefig(path)"):
        assert WRITES.search(line)
