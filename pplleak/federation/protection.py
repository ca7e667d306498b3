"""What a client does against leakage, said in one line: `none`, a channel, or a file of `pplleak.federation.defences`.

none        gaussian:sigma=0.1        dpsgd:noise_multiplier=1,clip=1        topk:rate=0.99
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.errors import BadInput, unknown
from pplleak.federation import targets

NONE = "none"
NOISE = ("gaussian", "laplace", "elastic")  # channels whose strength is their sigma
QUIET = 1e-6  # σ of what is shared in full: less than float32 rounds off, and a posterior needs some


@dataclass(frozen=True)
class Protection:
    """A defence by name, with its settings.

    given     the settings that were named, in words: how strong it is
    settings  all settings, sigma included
    """

    name: str = NONE
    given: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}:{self.given}" if self.given else self.name

    @property
    def channel(self) -> type[channels.Channel] | None:
        """The channel that it is, or None."""
        return channels.get(self.name) if self.name in channels.names() else None

    def of_target(self) -> dict[str, Any]:
        """The keyword arguments by which `targets.from_data` attacks a client behind it."""
        if self.channel:
            settings = dict(self.settings)
            return {"channel": self.name, "sigma": settings.pop("sigma", None), "channel_settings": settings}
        return {"channel": "gaussian", "sigma": QUIET, **self.of_client()}

    def of_client(self) -> dict[str, Any]:
        """The keyword arguments by which `targets.build_client` builds the client's network."""
        if self.name == NONE or self.channel:
            return {}
        return {"defence": self.name, "defence_settings": dict(self.settings)}

    def share(self, client: Client, x: Tensor, y: Tensor) -> Tensor:
        """What the server sees of one batch x (B, *input_shape), y (B,): (D,). Draws by torch's own generator."""
        with torch.no_grad():
            if self.channel:
                return self.channel(client.update(x, y), **self.settings).sample()
            package = _package()
            if package is None or self.name == NONE:
                return client.update(x, y).materialise()
            return package.share(client, x, y, self.name, self.settings)


def resolve(name: str, settings: Mapping[str, Any] | None = None) -> Protection:
    """A defence by name; raises BadInput for a name, a setting or a value that there is not."""
    settings = dict(settings or {})
    given = ",".join(f"{n}={v}" for n, v in settings.items())
    if name == NONE:
        if settings:
            raise BadInput(f"the defence none has no setting '{min(settings)}'")
        return Protection()
    package = _package()
    if name in channels.names():
        sigma = settings.pop("sigma", None)
        _, sigma, settings = targets.resolve_channel(name, sigma, settings, str(name))
        return Protection(name, given, {**settings, **({} if sigma is None else {"sigma": sigma})})
    if package is not None and name in package.names():
        return Protection(name, given, package.check(name, settings, name))
    raise unknown("defence", name, known())


def settable(name: str, kind: str = "channel") -> Callable[..., Any]:
    """What of a channel, or of a defence, can be set: the function whose settings they are."""
    package = _package()
    if kind == "channel":
        return channels.settable(name)
    if package is None or name not in package.names():
        raise unknown(
            "defence", name, package.names() if package else (), "Noise, pruning, DP-SGD, … are channels: --channel."
        )
    return package.entry(name)


def known() -> list[str]:
    """Every name that `resolve` takes."""
    package = _package()
    return [NONE, *channels.names(), *(package.names() if package else ())]


def parse(said: str) -> Protection:
    """`resolve` of one line: NAME, or NAME:SETTING=VALUE,SETTING=VALUE.

    Where noise is not what a channel is for (`topk`, `sign`, …) and no sigma is named, there is none.
    """
    name, _, rest = said.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        setting, equals, value = part.partition("=")
        if not (setting and equals and value):
            raise BadInput(f"the defence '{said}' must read NAME:SETTING=VALUE,SETTING=VALUE: gaussian:sigma=0.1")
        try:
            settings[setting] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[setting] = value  # a word
    channel = channels.get(name) if name in channels.names() else None
    noisy = channel is not None and "sigma" in inspect.signature(channel).parameters
    quiet = {"sigma": QUIET} if noisy and name not in NOISE and "sigma" not in settings else {}
    return replace(resolve(name, settings | quiet), given=rest)


def _package() -> ModuleType | None:
    """`pplleak.federation.defences`, where this installation has it."""
    name = "pplleak.federation.defences"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
