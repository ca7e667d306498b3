"""What a name means in a file, read off the sources: assignments and imports are followed, and nothing is run.

Only pplleak's own modules and the files beside a file are followed; what comes from elsewhere has no place.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pplleak import folders
from pplleak.errors import BadInput

ROOT = Path(__file__).parent
Place = tuple[Path, "ast.AST | None"]  # a definition and the file that it stands in; None for the file itself


def module(name: str) -> Path | None:
    """The file of one of pplleak's modules, found without importing it."""
    parts = name.split(".")
    if parts[0] != "pplleak":
        return None
    base, rest = ROOT, parts[1:]
    if rest[:1] in (["models"], ["inference"]):  # they lie beside the package in a checkout
        spec = importlib.util.find_spec(".".join(parts[:2]))
        base, rest = Path(str(spec and spec.origin)).parent, rest[1:]
    return _file(base.joinpath(*rest))


def _file(stem: Path) -> Path | None:
    return next((p for p in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py") if p.is_file()), None)


def defined(path: Path) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """The functions and classes that a file defines, by name."""
    return {n.name: n for n in tree(path).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def functions(path: Path, arguments: Sequence[str]) -> dict[str, str]:
    """The public functions of a file that take these arguments before their settings, with their docstrings' first
    lines."""
    return {
        name: (ast.get_docstring(node) or "").partition("\n")[0]
        for name, node in defined(path).items()
        if isinstance(node, ast.FunctionDef) and name[0] != "_" and [a.arg for a in node.args.args] == list(arguments)
    }


def tree(path: Path) -> ast.Module:
    """A file, parsed. BadInput says what is wrong with one that is no Python or cannot be read."""
    try:
        return folders.parsed(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise BadInput(f"{path} cannot be loaded: {type(error).__name__}: {error.args[0]}{line}") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error


def mentions(path: Path, name: str) -> bool:
    """Whether a file has a name at its top: defined, assigned or imported."""
    return lookup(path, name) is not None or name in imported(tree(path))


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If):  # `if TYPE_CHECKING:`
            yield from _statements([*node.orelse, *node.body])
        elif isinstance(node, ast.Try):
            yield from _statements(node.body)
        else:
            yield node


def imported(tree: ast.Module) -> set[str]:
    """The names that a file imports at its top; "*" where it imports all that a module has."""
    return {
        alias.asname or alias.name
        for n in _statements(tree.body)
        if isinstance(n, ast.ImportFrom | ast.Import)
        for alias in n.names
    }


def lookup(path: Path, name: str, seen: frozenset[tuple[Path, str]] = frozenset()) -> Place | None:
    """What a name means at the top of a file, through assignments and imports of pplleak's and neighbouring files."""
    if (path, name) in seen:
        return None
    seen = seen | {(path, name)}
    for node in reversed(list(_statements(tree(path).body))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.TypeAlias):
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            targets = [node.name] if isinstance(node, ast.TypeAlias) else targets
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                if isinstance(node.value, ast.Name):
                    return lookup(path, node.value.id, seen) or (path, node)
                return path, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _import(path, node, alias.name, seen)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname == name and (home := module(alias.name)):
                    return home, None
    return None


def _import(path: Path, node: ast.ImportFrom, name: str, seen: frozenset[tuple[Path, str]]) -> Place | None:
    """What `from module import name` gives."""
    if node.level:
        folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        home, inner = _file(folder), _file(folder / name)
    else:
        home, inner = module(node.module or ""), module(f"{node.module}.{name}")
    found = _member(home, name, seen) if home else None
    return found or ((inner, None) if inner else None)


def _member(home: Path, name: str, seen: frozenset[tuple[Path, str]] = frozenset()) -> Place | None:
    """What a module has under a name; a package that opens its files lazily (`pplleak.channels`) has what they have."""
    found = lookup(home, name, seen)
    if found is None and home.name == "__init__.py" and (stem := folders.where(home.parent, name)):
        return lookup(home.with_name(f"{stem}.py"), name, seen)
    return found


def resolve(path: Path, node: ast.expr) -> Place | None:
    """What a name, or a name with dots, means in a file."""
    if isinstance(node, ast.Name):
        return lookup(path, node.id)
    if isinstance(node, ast.Attribute) and (base := resolve(path, node.value)):
        home, inside = base
        if inside is None:
            return _member(home, node.attr)
        if isinstance(inside, ast.ClassDef):
            for member in reversed(inside.body):
                targets = member.targets if isinstance(member, ast.Assign) else []
                targets = [member.target] if isinstance(member, ast.AnnAssign) else targets
                if any(isinstance(t, ast.Name) and t.id == node.attr for t in targets):
                    return home, member
    return None


def method(path: Path, node: ast.ClassDef, name: str) -> tuple[Path, ast.FunctionDef] | None:
    """A method of a class, or the one that it inherits."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == name:
            return path, member
    for base in node.bases:
        found = resolve(path, base)
        if found and isinstance(found[1], ast.ClassDef) and (inherited := method(found[0], found[1], name)):
            return inherited
    return None
