"""A folder that is a list: every file is one entry, found by its name, and nothing is registered anywhere.

Channels, priors, datasets, networks and defences are such folders. What is in one is read without running it, so that
listing needs no torch; a file is imported when it is asked for. Files whose names begin with an underscore hold what
the others share.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from pplleak.errors import unknown

FOLDER = Path(__file__).resolve().parent  # pplleak's own


def home(package: str) -> Path:
    """Where the files of a package lie."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names, in their order; those that begin with an underscore are passed over."""
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def names(folder: Path, entry: str = "") -> dict[str, str]:
    """The files of a folder with their docstrings' first lines, in the order of their names.

    Args:
        folder: of Python files.
        entry: only the files that define a function or a class of that name at their top level; "" takes all.
    """
    listed = {}
    for path in files(folder).values():
        tree = parsed(path.read_text(encoding="utf-8"))
        if not entry or entry in _defined(tree):
            listed[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return listed


def where(folder: Path, name: str) -> str | None:
    """The stem of the file that defines `name` at its top level; None where no file of the folder does."""
    for path in files(folder).values():
        if name in _defined(parsed(path.read_text(encoding="utf-8"))):
            return path.stem
    return None


def load(package: str, kind: str, name: str, entry: str = "") -> ModuleType:
    """The module of a package's file, imported.

    Args:
        package: as it is imported, ``pplleak.channels``. kind: what its files are, for the message. entry: of `names`.

    Raises:
        BadInput: there is no such file, with the near names.
    """
    folder = home(package)
    if name not in (names(folder, entry) if entry else files(folder)):
        raise unknown(kind, name, names(folder, entry))
    return importlib.import_module(f"{package}.{name}")


@functools.lru_cache(512)
def parsed(text: str) -> ast.Module:
    """A source, parsed once: one command asks for the same folders a dozen times."""
    return ast.parse(text)


def _defined(tree: ast.Module) -> set[str]:
    """Functions, classes and names that a file's top level binds."""
    bound = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound |= {t.id for t in targets if isinstance(t, ast.Name)}
    return bound
