"""What can be set, read off the source: a help text and a wrong word need neither torch nor a user's file to run.

`read` gives the keyword-only arguments of a function of a file. Aliases of types (`Optimizer = Literal[…]`) and
constants are followed through the file and through pplleak's own modules, none of which is imported.
"""

from __future__ import annotations

import ast
import math
import operator
import types
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pplleak import sources
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
    found = sources.lookup(path, function)
    if found is None:
        if {function, "*"} & sources.imported(sources.tree(path)):  # of a module that is none of ours
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


def summary(path: Path, name: str) -> str:
    """The first line of the docstring of a file's function or class."""
    return next(iter((ast.get_docstring(sources.defined(path)[name]) or "").splitlines()), "")


def value(path: Path, name: str) -> Any:
    """A constant of a file, `STEPS` or `Class.field`; UNREAD where it is none."""
    return _evaluate(path, ast.parse(name, mode="eval").body)


def constants(name: str, class_: str) -> dict[str, Any]:
    """The defaults of a class of one of pplleak's modules: field -> value."""
    path = sources.module(name)
    node = sources.defined(path)[class_] if path else None
    fields = [m for m in node.body if isinstance(m, ast.AnnAssign)] if isinstance(node, ast.ClassDef) else []
    return {ast.unparse(f.target): _evaluate(path, f.value) for f in fields if path and f.value is not None}


def kind(path: Path, name: str) -> Any:
    """The type that a name of a file stands for (`Optimizer = Literal[…]`); None where it cannot be written."""
    return _kind(path, ast.parse(name, mode="eval").body)


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
            found = sources.resolve(path, node)
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
            found = sources.resolve(path, node)
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


def writable(kind: Any) -> Any:
    """The part of a type that can be written on a command line, or None."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal or kind in (int, float, str, bool):
        return kind
    if origin in (tuple, list):
        return kind if all(a is ... or writable(a) is not None for a in args) else None
    if origin in (Union, types.UnionType):  # str | Tensor
        parts = [a for a in args if a is type(None) or writable(a) is not None]
        return Union[tuple(parts)] if any(p is not type(None) for p in parts) else None  # noqa: UP007
    return None


def constructor(path: Path, node: ast.ClassDef) -> tuple[Path, ast.FunctionDef] | None:
    """The `__init__` of a class; where that needs more than its first argument, the `of` that the class has for it."""
    made = sources.method(path, node, "__init__")
    if made is not None:
        arguments = made[1].args
        needed = len(arguments.args) - len(arguments.defaults) - 2  # `self` and what the object is made of
        if needed <= 0 and None not in arguments.kw_defaults:
            return made
    return sources.method(path, node, "of") or made


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
