"""What can be set, read off the source: a help text and a wrong word need neither torch nor a user's file to run.

`read` gives the keyword-only arguments of a function of a file. Aliases of types (`Optimizer = Literal[…]`) and
constants are followed through the file and through pplleak's own modules, none of which is imported.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
import operator
import types
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from pplleak import folders
from pplleak.errors import BadInput
from pplleak.settings import Setting


class _Unread:
    """The default of a setting that only running the file would tell."""

    def __repr__(self) -> str:
        return "(computed by the file)"


UNREAD = _Unread()
WRITABLE = {"int": int, "float": float, "str": str, "bool": bool, "None": type(None)}
CONSTANTS = {"math.pi": math.pi, "math.inf": math.inf, "math.tau": math.tau, "math.e": math.e}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
}  # fmt: skip
ROOT = Path(__file__).parent
Place = tuple[Path, "ast.AST | None"]  # a definition and the file that it stands in; None for the file itself


def read(path: Path, function: str, reserved: Container[str] = (), *, positional: bool = False) -> list[Setting] | None:
    """The keyword-only arguments of a function of a file, in order, without running the file.

    Of a class: those of its `constructor`. Aliases of types and constants are
    followed through the file and pplleak's modules. Types that a command line cannot write are left out; a default
    that is not a literal, a constant or their sum is `UNREAD`.

    Args:
        reserved: names that are no settings. positional: take the other arguments that have a name, too.

    Returns:
        None: the name is there, but what it can be set to cannot be told by reading (`run = functools.partial(…)`).

    Raises:
        BadInput: there is no such file or function, the file is no Python, or a setting has no default.
    """
    found = _lookup(path, function)
    if found is None:
        if {function, "*"} & _imported(_tree(path)):  # of a module that is none of ours
            return None
        raise BadInput(f"{path} has no function '{function}'")
    home, node = found
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
        raise BadInput(f"{path} has no function '{function}'")
    doc = ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None
    if isinstance(node, ast.ClassDef):
        home, node = constructor(home, node) or (home, None)
        doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) and node.name == "of" else doc
    return list(_arguments(home, node, doc or "", reserved, positional)) if isinstance(node, ast.FunctionDef) else None


def described(doc: str) -> dict[str, str]:
    """The line that a docstring's Args has for each argument."""
    import docstring_parser  # one of the parser's own imports, and of no one else's

    return {p.arg_name: " ".join((p.description or "").split()) for p in docstring_parser.parse(doc).params}


def defined(path: Path) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """The functions and classes that a file defines, by name."""
    return {n.name: n for n in _tree(path).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def summary(path: Path, name: str) -> str:
    """The first line of the docstring of a file's function or class."""
    return next(iter((ast.get_docstring(defined(path)[name]) or "").splitlines()), "")


def value(path: Path, name: str) -> Any:
    """A constant of a file, `STEPS` or `Class.field`; UNREAD where it is none."""
    return _evaluate(path, ast.parse(name, mode="eval").body)


def mentions(path: Path, name: str) -> bool:
    """Whether a file has a name at its top: defined, assigned or imported."""
    return _lookup(path, name) is not None or name in _imported(_tree(path))


def constants(name: str, class_: str) -> dict[str, Any]:
    """The defaults of a class of one of pplleak's modules: field -> value."""
    path = module(name)
    node = defined(path)[class_] if path else None
    fields = [m for m in node.body if isinstance(m, ast.AnnAssign)] if isinstance(node, ast.ClassDef) else []
    return {ast.unparse(f.target): _evaluate(path, f.value) for f in fields if path and f.value is not None}


def kind(path: Path, name: str) -> Any:
    """The type that a name of a file stands for (`Optimizer = Literal[…]`); None where it cannot be written."""
    return _kind(path, ast.parse(name, mode="eval").body)


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


def _tree(path: Path) -> ast.Module:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise BadInput(f"{path} cannot be loaded: {type(error).__name__}: {error.args[0]}{line}") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error


@functools.lru_cache(512)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If):  # `if TYPE_CHECKING:`
            yield from _statements([*node.orelse, *node.body])
        elif isinstance(node, ast.Try):
            yield from _statements(node.body)
        else:
            yield node


def _imported(tree: ast.Module) -> set[str]:
    return {
        alias.asname or alias.name
        for n in _statements(tree.body)
        if isinstance(n, ast.ImportFrom | ast.Import)
        for alias in n.names
    }


def _lookup(path: Path, name: str, seen: frozenset[tuple[Path, str]] = frozenset()) -> Place | None:
    """What a name means at the top of a file, through assignments and imports of pplleak's and neighbouring files."""
    if (path, name) in seen:
        return None
    seen = seen | {(path, name)}
    for node in reversed(list(_statements(_tree(path).body))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.TypeAlias):
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            targets = [node.name] if isinstance(node, ast.TypeAlias) else targets
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                if isinstance(node.value, ast.Name):
                    return _lookup(path, node.value.id, seen) or (path, node)
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
    found = _lookup(home, name, seen)
    if found is None and home.name == "__init__.py" and (stem := folders.where(home.parent, name)):
        return _lookup(home.with_name(f"{stem}.py"), name, seen)
    return found


def resolve(path: Path, node: ast.expr) -> Place | None:
    """What a name, or a name with dots, means in a file."""
    if isinstance(node, ast.Name):
        return _lookup(path, node.id)
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


def _evaluate(path: Path, node: ast.AST | None) -> Any:
    """The value of an expression of literals and constants; UNREAD for any other, and for one that means itself."""
    try:
        return _value_of(path, node)
    except RecursionError:
        return UNREAD


def _value_of(path: Path, node: ast.AST | None) -> Any:
    match node:
        case ast.Constant(value=constant):
            return constant
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            values = [_value_of(path, p) for p in parts]
            made = tuple(values) if isinstance(node, ast.Tuple) else values
            return UNREAD if UNREAD in values else made
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            number = _value_of(path, inner)
            return -number if isinstance(number, int | float) else UNREAD
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in ARITHMETIC:
            a, b = _value_of(path, left), _value_of(path, right)
            numbers = isinstance(a, int | float) and isinstance(b, int | float) and b != 0
            return ARITHMETIC[type(sign)](a, b) if numbers else UNREAD
        case ast.Name() | ast.Attribute():
            if (text := ast.unparse(node)) in CONSTANTS:
                return CONSTANTS[text]
            found = resolve(path, node)
            stands = found is not None and isinstance(found[1], ast.Assign | ast.AnnAssign)
            return _value_of(found[0], found[1].value) if found and stands else UNREAD  # type: ignore[union-attr]
        case ast.Dict() as table:
            try:
                return ast.literal_eval(table)
            except ValueError:
                return UNREAD
    return UNREAD


def _kind(path: Path, node: ast.AST | None) -> Any:
    """The part of an annotation that a command line can write, or None; None also for one that means itself."""
    try:
        return _kind_of(path, node)
    except RecursionError:
        return None


def _kind_of(path: Path, node: ast.AST | None) -> Any:
    match node:
        case ast.Constant(value=None):
            return type(None)
        case ast.Constant(value=str(text)):
            return _kind_of(path, ast.parse(text, mode="eval").body)
        case ast.Name(id=name) if name in WRITABLE:
            return WRITABLE[name]
        case ast.Name() | ast.Attribute():
            found = resolve(path, node)
            if found and isinstance(found[1], ast.Assign | ast.AnnAssign | ast.TypeAlias):
                return _kind_of(found[0], found[1].value)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _union([_kind_of(path, left), _kind_of(path, right)])
        case ast.Subscript(value=base, slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            match ast.unparse(base).rpartition(".")[2]:
                case "Literal":
                    values = tuple(_evaluate(path, p) for p in parts)
                    return None if UNREAD in values else Literal[values]
                case "Optional":
                    return _union([_kind_of(path, parts[0]), type(None)])
                case "Union":
                    return _union([_kind_of(path, p) for p in parts])
                case "Annotated":
                    return _kind_of(path, parts[0])
                case "tuple" | "list" as holder:
                    dots = [isinstance(p, ast.Constant) and p.value is ... for p in parts]
                    kinds = [... if d else _kind_of(path, p) for d, p in zip(dots, parts, strict=True)]
                    if None not in kinds:
                        return (
                            types.GenericAlias(tuple, tuple(kinds))
                            if holder == "tuple"
                            else types.GenericAlias(list, kinds[0])
                        )
    return None


def _union(kinds: Sequence[Any]) -> Any:
    kept = [k for k in kinds if k is not None]
    return Union[tuple(kept)] if any(k is not type(None) for k in kept) else None  # noqa: UP007


def constructor(path: Path, node: ast.ClassDef) -> tuple[Path, ast.FunctionDef] | None:
    """The `__init__` of a class; where that needs more than its first argument, the `of` that the class has for it."""
    made = _method(path, node, "__init__")
    if made is not None:
        arguments = made[1].args
        needed = len(arguments.args) - len(arguments.defaults) - 2  # `self` and what the object is made of
        if needed <= 0 and None not in arguments.kw_defaults:
            return made
    return _method(path, node, "of") or made


def _method(path: Path, node: ast.ClassDef, name: str) -> tuple[Path, ast.FunctionDef] | None:
    """A method of a class, or the one that it inherits."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == name:
            return path, member
    for base in node.bases:
        found = resolve(path, base)
        if found and isinstance(found[1], ast.ClassDef) and (inherited := _method(found[0], found[1], name)):
            return inherited
    return None


def _arguments(
    path: Path, node: ast.FunctionDef, doc: str, reserved: Container[str], positional: bool
) -> Iterator[Setting]:
    docs = described(doc)
    ordered = [*node.args.posonlyargs, *node.args.args] if positional else []
    missing: list[ast.expr | None] = [None] * (len(ordered) - len(node.args.defaults))
    defaults = [*missing, *node.args.defaults, *node.args.kw_defaults] if positional else node.args.kw_defaults
    for argument, default in zip([*ordered, *node.args.kwonlyargs], defaults, strict=True):
        name = argument.arg
        if name in reserved or (name in ("self", "cls") and argument in ordered[:1]):
            continue
        if default is None:
            raise BadInput(f"the setting '{name}' of {path} has no default: every belief needs one")
        value = _evaluate(path, default)
        if argument.annotation is not None:
            written = _kind(path, argument.annotation)
        else:
            written = type(value) if type(value) in WRITABLE.values() and value is not None else None
        if written is not None:
            yield Setting(name, written, value, docs.get(name, ""))
