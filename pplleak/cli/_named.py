"""What can be named on the command line, and what each can be set to: read off the library's folders, run by none."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pplleak import folders, programs, signatures, sources
from pplleak.errors import BadInput, unknown
from pplleak.programs import RESERVED
from pplleak.settings import Setting

ROOT = Path(programs.__file__).parent
NETWORKS, CHANNELS, DEFENCES, DATA, PRIORS = (
    ROOT / p for p in ("client/networks", "channels", "federation/defences", "data", "priors")
)
OPTIMISERS = ROOT / "client" / "optimisers.py"
LOSSES = ROOT / "client" / "loss.py"
GIVEN = {"self", "cls", "update", "client", "batch_size", "public", "sigma"}  # a channel's: not by --channel.NAME
Definition = ast.FunctionDef | ast.ClassDef
Place = tuple[Path, str]  # a file, and the function or class in it


@functools.cache
def networks() -> dict[str, Place]:
    """The built-in networks: the functions (input_shape, num_classes, *, settings)."""

    def fits(_: Path, node: Definition) -> bool:
        return isinstance(node, ast.FunctionDef) and [a.arg for a in node.args.args] == ["input_shape", "num_classes"]

    return _definitions(NETWORKS, fits)


@functools.cache
def channels() -> dict[str, Place]:
    """The channels that settings describe in full; the others need tensors, and are left to Python users."""

    def fits(path: Path, node: Definition) -> bool:
        made = (
            signatures.constructor(path, node) if isinstance(node, ast.ClassDef) and _is_channel(path, node) else None
        )
        if made is None:
            return False
        arguments = made[1].args
        needed = {a.arg for a in arguments.args[: len(arguments.args) - len(arguments.defaults)]}
        needed |= {a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None}
        return needed <= GIVEN

    return {name.lower(): place for name, place in _definitions(CHANNELS, fits).items()}


def algorithms(kind: str) -> dict[str, list[Setting]]:
    """The optimisers, or the schedules of the learning rate, that local training may take, with their settings."""
    listed = sources.functions(OPTIMISERS, signatures.value(OPTIMISERS, "ARGUMENTS")[kind])
    return {name: signatures.read(OPTIMISERS, name) or [] for name in listed}


@functools.cache
def defences() -> dict[str, Place]:
    """The defences: files that define `share` or `network`."""
    places: dict[str, Place] = {}
    for name in folders.names(DEFENCES):
        path = DEFENCES / f"{name}.py"
        entries = [f for f in ("share", "network") if f in sources.defined(path)]
        places |= {name: (path, entries[0])} if entries else {}
    return places


def losses() -> dict[str, str]:
    """The losses of a client, with their first lines."""
    return sources.functions(LOSSES, signatures.value(LOSSES, "ARGUMENTS"))


@functools.cache
def priors() -> dict[str, Place]:
    """The priors that an adversary may believe in: files with a function `prior`."""
    listed = folders.names(PRIORS, "prior")
    return {name: (PRIORS / f"{name}.py", "prior") for name in listed}


def fitted() -> dict[str, Place]:
    """The priors that `pplleak prior fit` fits and keeps: files with a `fit` and a `restore`, of their name or not."""
    places = {}
    for name in folders.names(PRIORS):
        path = PRIORS / f"{name}.py"
        have = sources.defined(path)
        for fit, restore in ((f"fit_{name}", f"restore_{name}"), ("fit", "restore")):
            if {fit, restore} <= set(have):
                places[name] = (path, fit)
    return places


def network_settings(name: str) -> list[Setting] | None:
    """What a network can be set to: a built-in name, or FILE.py:FUNCTION; None where reading does not tell."""
    known = networks()
    if name in known:
        return signatures.read(*known[name], RESERVED)
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise unknown("network", name, known, "Or give FILE.py:FUNCTION.")
    if not Path(file).is_file():
        raise BadInput(f"no file {file}")
    return signatures.read(Path(file), function, RESERVED)


def channel_settings(name: str) -> list[Setting]:
    """What a channel can be set to, besides its sigma."""
    return _read("channel", name, channels())


def defence_settings(name: str) -> list[Setting]:
    """What a defence can be set to."""
    return _read("defence", name, defences(), "Noise, pruning, DP-SGD, … are channels: --channel.")


def prior_settings(name: str) -> list[Setting]:
    """What a prior can be set to, besides the public images that it is fitted to."""
    return [s for s in _read("prior", name, priors()) if s.name != "reference"]


def fit_settings(name: str) -> list[Setting]:
    """What the fit of a prior can be set to."""
    return _read("prior", name, fitted())


def data() -> str:
    """The data that can be named, as a help text lists them."""
    files = "the file of a table (FILE.csv) or of a text (FILE.txt)"
    return f"{listed(folders.names(DATA, 'private'))}, a folder of images, {files}"


def is_table(name: str) -> bool:
    """Whether data are rows of a table: the file of one, or named data whose file in data/ says so (TABLE)."""
    return is_table_file(name) or name in folders.names(DATA, "TABLE")


def is_table_file(name: str) -> bool:
    endings = signatures.value(DATA / "__init__.py", "TABLES")
    return Path(name).suffix.lower() in endings


def is_text(name: str) -> bool:
    """Whether data are the file of a text."""
    return Path(name).suffix.lower() in signatures.value(DATA / "__init__.py", "TEXTS")


def text_settings() -> list[Setting]:
    """What the reading of a text's file can be set to."""
    return signatures.read(DATA / "text.py", "halves", RESERVED) or []


def table_settings() -> list[Setting]:
    """What the reading of a table's file can be set to."""
    return signatures.read(DATA / "table.py", "halves", RESERVED) or []


def written(known: Mapping[str, Iterable[Setting]]) -> str:
    """Names with what each can be set to, as a help text lists them: `sgd (momentum, nesterov)`."""
    return listed(f"{n} ({listed(s.name for s in of)})" if of else n for n, of in known.items())


def listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _read(kind: str, name: str, known: dict[str, Place], hint: str = "") -> list[Setting]:
    if name not in known:
        raise unknown(kind, name, known, hint)
    return signatures.read(*known[name], RESERVED) or []


def _definitions(folder: Path, fits: Callable[[Path, Definition], bool]) -> dict[str, Place]:
    """Every public function and class of a folder's files that fits: name -> where it is."""
    places = {}
    for stem in folders.names(folder):
        path = folder / f"{stem}.py"
        for name, node in sources.defined(path).items():
            if not name.startswith("_") and fits(path, node):
                places[name] = (path, name)
    return places


def _is_channel(path: Path, node: ast.ClassDef) -> bool:
    for base in node.bases:
        places = sources.resolve(path, base)
        if places and isinstance(places[1], ast.ClassDef):
            home, parent = places[0], places[1]
            if parent.name == "Channel" or _is_channel(home, parent):
                return True
    return False
