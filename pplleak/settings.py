"""What a thing is called and how it is set: `gaussian:sigma=0.1`, and the keyword arguments that can be set at all.

A network, a prior, a channel, a defence, a loss and an optimiser are each a name with settings. `Named` is parsed once,
checked once against the signature of what it names, and travels whole from the command line into an observation's file.
"""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pplleak import reading
from pplleak.errors import BadInput, printable, unknown

PLAIN = (bool, int, float, str, list, tuple, type(None))  # what can be written down


@dataclass(frozen=True)
class Setting:
    """A keyword argument that can be set: its name, type and default, and the line that its docstring has for it."""

    name: str
    type: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Named:
    """A name with settings, printed as ``gaussian:sigma=0.1``.

    >>> Named.parse("topk:rate=0.9,sigma=0.01")
    Named('topk:rate=0.9,sigma=0.01')
    >>> Named.parse("topk:rate=0.9").settings["rate"]
    0.9
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frozen = {n: tuple(v) if isinstance(v, list) else v for n, v in self.settings.items()}  # as JSON has them
        object.__setattr__(self, "settings", frozen)

    @classmethod
    def parse(cls, text: str | Named) -> Named:
        """NAME or NAME:SETTING=VALUE,SETTING=VALUE; a value is a Python literal, or a word. A name may be a user's own
        FILE.py or FILE.py:FUNCTION.

        Raises:
            BadInput: it does not read like that.
        """
        if isinstance(text, Named):
            return text
        file = re.fullmatch(r"(.*\.py(?::\w+(?=:|$))?):?(.*)", text, re.DOTALL)
        name, rest = file.groups() if file else text.split(":", 1) if ":" in text else (text, "")
        settings: dict[str, Any] = {}
        for part in _parts(rest):
            setting, equals, value = part.partition("=")
            if not (setting.strip() and equals and value.strip()):
                raise BadInput(f"'{text}' must read NAME:SETTING=VALUE,SETTING=VALUE: gaussian:sigma=0.1")
            settings[setting.strip()] = _literal(value.strip())
        return cls(name, settings)

    @classmethod
    def several(cls, text: str | Named) -> list[Named]:
        """NAME,NAME:SETTING=VALUE,SETTING=VALUE,NAME: a part without a name before its = is a setting of the last one.

        >>> Named.several("gaussian:floor=0.05,margin=2,vae")
        [Named('gaussian:floor=0.05,margin=2'), Named('vae')]
        """
        if isinstance(text, Named):
            return [text]
        texts: list[str] = []
        for part in _parts(text):
            if texts and ":" in texts[-1] and re.match(r"\s*\w+\s*=", part):
                texts[-1] += f",{part}"
            else:
                texts.append(part.strip())
        return [cls.parse(t) for t in texts]

    def with_(self, **settings: Any) -> Named:
        """The same with some settings replaced; None leaves a setting as it is."""
        return Named(self.name, {**self.settings, **{n: v for n, v in settings.items() if v is not None}})

    def to_json(self) -> dict[str, Any]:
        """{"name": …, "settings": {…}}, as an observation's file has it."""
        return {"name": self.name, "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, kept: Any, what: str) -> Named:
        """What `to_json` wrote; raises BadInput, which begins with `what`, where it is not of that form."""
        if not (
            isinstance(kept, dict) and isinstance(kept.get("name"), str) and isinstance(kept.get("settings"), dict)
        ):
            raise BadInput(f"{what} is {kept!r}, not a name with settings")
        return cls(kept["name"], kept["settings"])

    def __str__(self) -> str:
        text = ",".join(f"{n}={_written(v)}" for n, v in self.settings.items())
        return f"{self.name}:{text}" if text else self.name

    def __repr__(self) -> str:
        return f"Named({str(self)!r})"

    def __hash__(self) -> int:
        return hash(str(self))


def _written(value: Any) -> str:
    """A value as `_literal` reads it back: a word as it is, a string that is none in quotes."""
    if not isinstance(value, str):
        return str(value).replace(" ", "")
    word = value and value == value.strip() and not set(value) & set(",'\"()[] ") and _literal(value) == value
    return value if word else repr(value)


def _parts(text: str) -> Iterator[str]:
    """Split at the commas that stand outside brackets and quotes: ``sigmas=(0.1,0.2),rate=0.5``."""
    depth, start, quote = 0, 0, ""
    for k, letter in enumerate(text):
        if letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        depth += 0 if quote else (letter in "([") - (letter in ")]")
        if letter == "," and not depth and not quote:
            yield text[start:k]
            start = k + 1
    if text[start:].strip():
        yield text[start:]


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def require(known: Iterable[Setting], given: Iterable[str], where: str, what: str = "the network") -> None:
    """Raise BadInput for the first of the names that is none of the known settings, and, where values are given with
    the names (a mapping), for the first that is of another kind than its setting."""
    kinds, head = {s.name: s for s in known}, f"{where}: " if where else ""
    surplus = set(given) - set(kinds)
    if surplus:
        raise BadInput(f"{head}{what} has no setting '{printable(min(surplus), 80)}'")
    for name, value in given.items() if isinstance(given, Mapping) else ():
        kind, default = kinds[name].type, kinds[name].default
        if not isinstance(value, PLAIN) or (value == default and type(value) is type(default)):
            continue  # a model's own tensor is its own business
        if typing.get_origin(kind) is typing.Literal and isinstance(value, str) and value not in typing.get_args(kind):
            raise BadInput(f"{head}{unknown(f'{name} of {what}', value, map(str, typing.get_args(kind)))}")
        reading.typed(value, kind, f"{head}{name} of {what}")


def check(named: Named, known: Iterable[Setting], what: str, where: str = "") -> Named:
    """The same with all its settings: those that are not given at their defaults.

    Args:
        known: what it can be set to. what: what it is, for the messages: ``the prior gaussian``. where: what named it,
            at the head of the messages.

    Raises:
        BadInput: a setting that is not known, or a value of another kind.
    """
    known = list(known)
    require(known, named.settings, where, what)
    return Named(named.name, {**{s.name: s.default for s in known}, **named.settings})


def with_defaults(known: Iterable[Setting], defaults: Mapping[str, Any], where: str) -> list[Setting]:
    """The same settings with other defaults; raises BadInput for a default of a setting that is not there."""
    known = list(known)
    require(known, defaults, where)
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in defaults.items()}  # as JSON has them
    return [replace(s, default=given.get(s.name, s.default)) for s in known]
