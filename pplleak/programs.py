"""Finds and opens the files of models/ and inference/, by name or by path; nothing is registered anywhere.

A name is a file of the folder (`hmc` is ``inference/hmc.py``), anything that ends in ``.py`` is a path. Both go
through one loader. What a file may offer besides its entry is declared here (`ModelFile`, `InferenceFile`). What its
entry can be set to is its keyword-only arguments, with their defaults, types and lines of the docstring: read off the
source by `described`, off a function by `settings`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pplleak import blame, folders, signatures, sources
from pplleak.errors import BadInput, unknown
from pplleak.settings import Named, Setting, require

Kind = Literal["models", "inference"]
ENTRY: dict[Kind, str] = {"models": "model", "inference": "run"}
RESERVED = {"seed", "progress"}  # of an inference: the command line's own


AUTO = "auto"  # in place of an inference: the one that suits the observation is chosen
MODEL = "optimal"  # what an adversary believes unless another model is named


@dataclass(frozen=True)
class ModelFile:
    """What a file of models/ is: its program, and what it may offer besides.

    model            (client, batch_size=1, *, beliefs) -> g, the generative program
    MAP              settings of `map` that it wants where the user sets none: its paper's optimiser
    labels           (client, observed) -> labels (batch,), read off a gradient that was shared without them, or None
    exact_posterior  (client, observed, *, beliefs) -> the posterior in closed form, where there is one
    """

    path: Path
    model: Callable[..., Any]
    MAP: Mapping[str, Any] = field(default_factory=dict)
    labels: Callable[[Any, Any], Any] | None = None
    exact_posterior: Callable[..., Any] | None = None


@dataclass(frozen=True)
class InferenceFile:
    """What a file of inference/ is: its algorithm, and what it may offer besides.

    run       (model, observed, client, *, seed, progress, settings) -> Posterior
    declines  (model, observed, client) -> why this exact sampler does not take them, "" where it does
    """

    path: Path
    run: Callable[..., Any]
    declines: Callable[[Any, Any, Any], str] | None = None


def folder(kind: Kind) -> Path:
    """Where the files of a kind lie, in a checkout as in a wheel."""
    return folders.home(f"pplleak.{kind}")


def names(kind: Kind) -> dict[str, str]:
    """Every file of a kind with its docstring's first line, read without running it."""
    return folders.names(folder(kind))


def locate(kind: Kind, name: str) -> Path:
    """The file behind a name or a path, with settings or without; raises BadInput with the near names where there is
    none."""
    name = Named.parse(name).name
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise BadInput(f"no file {name}")
        return path
    known = folders.files(folder(kind))
    if name not in known:
        hint = "Or give a path ending in .py."
        if kind == "models":
            hint += f" A prior is a setting of {MODEL} ({MODEL}:prior=vae), and the channel is the observation's."
        raise unknown(ENTRY[kind] if kind == "models" else kind, name, known, hint)
    return known[name]


def load(kind: Kind, name: str) -> Callable[..., Any]:
    """The `model` of a model file or the `run` of an inference file, with the settings of its name bound."""
    path, settings = locate(kind, name), Named.parse(name).settings
    function = _function(_opened(kind, path), ENTRY[kind], path)
    _require_arguments(function, kind, path)
    require_settings(function, settings, name, f"the {ENTRY[kind]} {path.stem}")
    return functools.partial(function, **settings) if settings else function


def _require_arguments(function: Callable[..., Any], kind: Kind, path: Path) -> None:
    """Raise BadInput for a `model` or a `run` that cannot be called as it will be."""
    given, named = (2, {}) if kind == "models" else (3, dict.fromkeys(sorted(RESERVED)))
    settings = {n: None for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(function).bind(*[None] * given, **{**settings, **named})
    except TypeError as error:
        taken = "client, batch_size" if kind == "models" else "model, observed, client, *, seed, progress"
        raise BadInput(f"'{ENTRY[kind]}' of {path} must take ({taken}) and settings by name: {error}") from error


def model(name: str) -> ModelFile:
    """A model file by name or by path.

    Raises:
        BadInput: there is none, it cannot be loaded, or what it offers is not of the kind that `ModelFile` declares.
    """
    path = locate("models", name)
    opened = _opened("models", path)
    wanted = getattr(opened, "MAP", {})
    if not isinstance(wanted, dict):
        raise BadInput(f"MAP of the model {name} must be a dictionary of settings, not a {type(wanted).__name__}")
    return ModelFile(
        path,
        _function(opened, ENTRY["models"], path),
        wanted,
        _offered(opened, "labels", path),
        _offered(opened, "exact_posterior", path),
    )


_model = model  # for functions with an argument of that name


def inference(name: str) -> InferenceFile:
    """An inference file by name or by path; raises BadInput as `model` does."""
    path = locate("inference", name)
    opened = _opened("inference", path)
    return InferenceFile(path, _function(opened, ENTRY["inference"], path), _offered(opened, "declines", path))


def declining() -> dict[str, Callable[[Any, Any, Any], str]]:
    """The `declines` of every inference that has one, by name: samplers that are exact where they do not decline."""
    able = [n for n in names("inference") if "declines" in sources.defined(locate("inference", n))]
    return {name: declines for name in able if (declines := inference(name).declines) is not None}


def described(kind: Kind, name: str) -> list[Setting] | None:
    """What a file's entry can be set to, read without running it; None where reading does not tell."""
    return signatures.read(locate(kind, name), ENTRY[kind], RESERVED)


def defaults(inference: str) -> dict[str, Any]:
    """What an inference's `run` is set to where nobody sets anything."""
    return {n: p.default for n, p in inspect.signature(load("inference", inference)).parameters.items()}


def preferred(model: str, inference: str) -> dict[str, Any]:
    """The settings that a model's file wants of an inference where the user sets none: its `MAP`, for `map`.

    Read without running the file, where they are literals.

    Raises:
        BadInput: they are no dictionary of that inference's settings.
    """
    if Path(inference).stem != "map":
        return {}
    wanted: Any = {}
    path = locate("models", model)
    if sources.mentions(path, "MAP"):
        wanted = signatures.value(path, "MAP")
        wanted = _model(model).MAP if wanted is signatures.UNREAD else wanted
    if not isinstance(wanted, dict):
        raise BadInput(f"MAP of the model {model} must be a dictionary of settings, not a {type(wanted).__name__}")
    known = described("inference", inference)
    require(
        settings(load("inference", inference)) if known is None else known,
        wanted,
        f"MAP of the model {model}",
        f"the inference {inference}",
    )
    return dict(wanted)


def _offered(opened: ModuleType, name: str, path: Path) -> Callable[..., Any] | None:
    offered = getattr(opened, name, None)
    if offered is not None and not callable(offered):
        raise BadInput(f"'{name}' of {path} must be a function, not a {type(offered).__name__}")
    return offered


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
        spec = importlib.util.spec_from_file_location(key, path.resolve())  # tracebacks name the file in full
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:
        sys.modules.pop(key, None)
        raise BadInput(f"{path} cannot be loaded: {blame.describe(error, path)}") from error


def shipped(path: Path) -> bool:
    """Whether a file is one of pplleak's own models or inferences."""
    return path.resolve().parent in {folder(k).resolve() for k in ENTRY}


blame.OURS.update(folder(k).resolve() for k in ENTRY)


def named(what: str, name: str, known: Iterable[str]) -> Callable[..., Any]:
    """The function of a name FILE.py:FUNCTION, which runs the file.

    Args:
        what: such a function is, at the head of the message. known: the names that are no files.

    Raises:
        BadInput: the name is none of that form, or there is no such file or function.
    """
    file, colon, inside = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise unknown(what, name, known, "Or give FILE.py:FUNCTION.")
    if not Path(file).is_file():
        raise BadInput(f"no file {file}")
    return function(Path(file), inside)


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
    base = function.func if isinstance(function, functools.partial) else function
    try:
        hints = typing.get_type_hints(base.__init__ if inspect.isclass(base) else base)
    except (NameError, TypeError):
        hints = {}
    docs = signatures.described(base.__doc__ or "")
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        named = (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) if positional else (parameter.KEYWORD_ONLY,)
        if parameter.kind not in named or name in reserved:
            continue
        if parameter.default is parameter.empty:
            raise BadInput(f"the setting '{name}' of {base.__module__} has no default: every belief needs one")
        kind = signatures.writable(hints.get(name, type(parameter.default)))
        if kind is not None:
            found.append(Setting(name, kind, parameter.default, docs.get(name, "")))
    return found


def require_settings(
    constructor: Callable[..., Any], given: Iterable[str], where: str, what: str = "the network"
) -> None:
    """Raise BadInput for the first name that the constructor of a network or a channel cannot be set by; for the first
    value, too, where a mapping gives them."""
    require(settings(constructor), given, where, what)
