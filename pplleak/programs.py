"""Finds and opens the files of models/ and inference/, by name or by path; nothing is registered anywhere.

A name is a file of the folder (`hmc` is ``inference/hmc.py``), anything that ends in ``.py`` is a path. Both go
through one loader. What a file's function can be set to is read off its signature: its keyword-only arguments,
with their defaults, types and the lines that its docstring says about them.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import shutil
import sys
import traceback
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import docstring_parser

from pplleak.errors import BadInput, unknown
from pplleak.settings import Named

Kind = Literal["models", "inference"]
ENTRY: dict[Kind, str] = {"models": "model", "inference": "run"}
RESERVED = {"seed", "progress"}  # of an inference: the command line's own


@dataclass(frozen=True)
class Setting:
    """A keyword argument that the command line can set."""

    name: str
    type: Any
    default: Any
    help: str


def folder(kind: Kind) -> Path:
    """Where the files of a kind lie, in a checkout as in a wheel."""
    spec = importlib.util.find_spec(f"pplleak.{kind}")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def names(kind: Kind) -> dict[str, str]:
    """Every file of a kind with its docstring's first line, read without running it."""
    found = {}
    for path in sorted(folder(kind).glob("*.py")):
        if not path.name.startswith("_"):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = doc.splitlines()[0] if doc else ""
    return found


def locate(kind: Kind, name: str) -> Path:
    """The file behind a name or a path, with settings or without; raises BadInput with the near names where there is
    none."""
    name = named(name).name
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise BadInput(f"no file {name}")
        return path
    if name not in names(kind):
        raise unknown(ENTRY[kind] if kind == "models" else kind, name, names(kind), "Or give a path ending in .py.")
    return folder(kind) / f"{name}.py"


def named(text: str) -> Named:
    """A program's name or path, with settings where some are given: `optimal:prior=vae`."""
    return Named(text) if text.endswith(".py") else Named.parse(text)


def load(kind: Kind, name: str) -> Callable[..., Any]:
    """The `model` of a model file or the `run` of an inference file, with the settings of its name bound."""
    path, settings = locate(kind, name), named(name).settings
    function = _function(_opened(kind, path), ENTRY[kind], path)
    require_settings(function, settings, name, f"the {ENTRY[kind]} {path.stem}")
    return functools.partial(function, **settings) if settings else function


def offers(kind: Kind, function: str) -> dict[str, Callable[..., Any]]:
    """The files of a kind that have a function of that name: file -> function."""
    found = {name: getattr(_opened(kind, locate(kind, name)), function, None) for name in names(kind)}
    return {name: f for name, f in found.items() if callable(f)}


def exported(kind: Kind, name: str, attribute: str, default: Any = None) -> Any:
    """What else a file says about itself, or the default: see `preferred`, and `labels` in docs/write-a-model.md."""
    return getattr(_opened(kind, locate(kind, name)), attribute, default)


def preferred(model: str, inference: str) -> dict[str, Any]:
    """The settings that a model's file wants of an inference where the user sets none: its `MAP`, for `map`.

    Raises:
        BadInput: they are no dictionary of that inference's settings.
    """
    attribute = Path(inference).stem.upper()
    found = exported("models", model, attribute, {})
    where = f"{attribute} of the model {model}"
    if not isinstance(found, dict):
        raise BadInput(f"{where} must be a dictionary of settings, not a {type(found).__name__}")
    require_settings(load("inference", inference), found, where, f"the inference {inference}")
    return dict(found)


def _opened(kind: Kind, path: Path) -> ModuleType:
    inside = path.resolve().parent == folder(kind).resolve()
    return _module(path, f"pplleak.{kind}.{path.stem}" if inside else None)


def _module(path: Path, name: str | None) -> ModuleType:
    """Run a file once; its own errors become one line that names the file and the line."""
    key = name or f"pplleak_user_{path.stem}_{abs(hash(path.resolve()))}"
    if key in sys.modules:
        return sys.modules[key]
    try:
        if name:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        sys.modules.pop(key, None)
        raise BadInput(f"{path} cannot be loaded: {message(error, path)}") from error


def message(error: Exception, path: Path | None = None) -> str:
    """An error of a user's file in one line: its kind, its message, and the last line of the file it passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if path and Path(f.filename).name == path.name]
    where = f" (line {frames[-1].lineno})" if frames else ""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}{where}"


def function(path: Path, name: str) -> Callable[..., Any]:
    """A function of a user's own file, which is run; raises BadInput where it cannot be, or has no such function."""
    return _function(_module(path, None), name, path)


def _function(module: ModuleType, name: str, path: Path) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        raise BadInput(f"{path} has no function '{name}'")
    return function


def settings(function: Callable[..., Any], reserved: set[str] = RESERVED, *, positional: bool = False) -> list[Setting]:
    """The keyword-only arguments of a model, an inference, a network or a channel, in order.

    Types the command line cannot write (tensors, functions) are left to Python users.

    Args:
        reserved: names that are no settings. positional: take the other arguments that have a name, too.
    """
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError):
        hints = {}
    docs = {p.arg_name: p.description or "" for p in docstring_parser.parse(function.__doc__ or "").params}
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        named = (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) if positional else (parameter.KEYWORD_ONLY,)
        if parameter.kind not in named or name in reserved:
            continue
        if parameter.default is parameter.empty:
            raise BadInput(f"the setting '{name}' of {function.__module__} has no default: every belief needs one")
        kind = _writable(hints.get(name, type(parameter.default)))
        if kind is not None:
            found.append(Setting(name, kind, parameter.default, " ".join(docs.get(name, "").split())))
    return found


def require_settings(
    constructor: Callable[..., Any], names: Iterable[str], where: str, what: str = "the network"
) -> None:
    """Raise BadInput for the first name that the constructor of a network or a channel cannot be set by."""
    surplus = set(names) - {s.name for s in settings(constructor)}
    if surplus:
        raise BadInput(f"{where}: {what} has no setting '{min(surplus)}'")


def _writable(kind: Any) -> Any:
    """The part of a type that can be written on a command line, or None."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal or kind in (int, float, str, bool):
        return kind
    if origin in (tuple, list):
        return kind if all(a is ... or _writable(a) is not None for a in args) else None
    if args and origin is not Callable:  # a union: str | Tensor
        parts = [a for a in args if a is type(None) or _writable(a) is not None]
        return typing.Union[tuple(parts)] if any(p is not type(None) for p in parts) else None  # noqa: UP007
    return None


def copy(name: str, destination: str | Path) -> Path:
    """Copy a model or inference file, to start one's own; raises BadInput rather than overwrite."""
    kinds: list[Kind] = [k for k in ENTRY if name in names(k)]
    if not kinds:
        raise unknown("file", name, [n for k in ENTRY for n in names(k)])
    destination = Path(destination)
    target = destination / f"{name}.py" if destination.is_dir() else destination
    if target.suffix != ".py":
        raise BadInput(f"{target} must end in .py, so that --model and --inference know it for a file")
    if target.exists():
        raise BadInput(f"{target} exists already: give another name, nothing was overwritten")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(locate(kinds[0], name), target)
    except OSError as error:
        raise BadInput(f"cannot write {target}: {error.strerror}") from error
    return target
