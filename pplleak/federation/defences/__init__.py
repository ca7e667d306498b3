"""Defences that do more to a gradient than a channel can: each is a file of this folder, and exports one of

    share(client, x, y, *, settings) -> Tensor (D,)                        what is sent in place of u(x, y)
    network(base, input_shape, num_classes, *, settings) -> nn.Module      the client's network, changed

A file that shares may also export `sent(client, x, y, *, settings) -> Tensor (D,)`, bool: which entries it sends at
all; a channel's noise is then on those alone. `ATTACKS`, an `Attacks`, says who attacks it in `pplleak defend`. Noise,
clipping, pruning, rounding and signs are `pplleak.channels`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pplleak import programs
from pplleak.client import Client
from pplleak.errors import BadInput, unknown
from pplleak.federation.defences._others import trained_on
from pplleak.settings import Named

__all__ = ["Attacks", "check", "entry", "load", "names", "sent", "share", "trained_on"]


@dataclass(frozen=True)
class Attacks:
    """Who attacks a defence: the model of its own paper's attack, where that stands, and the model that knows it."""

    own: str
    source: str
    knowing: str


def names() -> dict[str, str]:
    """Every defence with its docstring's first line."""
    found = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    return {name: (load(name).__doc__ or "").splitlines()[0] for name in found}


def load(name: str) -> ModuleType:
    """The module of a defence; raises BadInput with the near names where there is none."""
    known = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    if name not in known:
        raise unknown("defence", name, known, "Noise, pruning, DP-SGD, … are channels.")
    return importlib.import_module(f"{__name__}.{name}")


def entry(name: str) -> Callable[..., Any]:
    """The one function that a defence exports, `share` or `network`, whose settings are the defence's."""
    module = load(name)
    return getattr(module, "share", None) or module.network


def check(named: Named, where: str = "") -> Named:
    """The defence with all its settings, those that are not given at their defaults.

    Raises:
        BadInput: an unknown defence, or a setting that it has not.
    """
    function = entry(named.name)
    programs.require_settings(function, named.settings, where or named.name, f"the defence {named.name}")
    return Named(named.name, {s.name: s.default for s in programs.settings(function)} | dict(named.settings))


def network(base: nn.Module, input_shape: tuple[int, ...], num_classes: int, named: Named | None) -> nn.Module:
    """The client's network behind a defence: changed by one that exports `network`, else as it is."""
    change = None if named is None else getattr(load(named.name), "network", None)
    if change is None or named is None:
        return base
    changed: nn.Module = change(base, input_shape, num_classes, **named.settings)
    return changed


@torch.no_grad()
def share(client: Client, x: Tensor, y: Tensor, named: Named | None = None) -> Tensor:
    """What a client sends of one batch, before any channel, (D,); without a defence, its update.

    Draws what there is to draw (ATS' transforms, PRECODE's noise) by torch's generator.

    Args:
        x: (batch, *input_shape). y: (batch,). named: the defence with its settings, or None.
    """
    module = load(named.name) if named else None
    if module is None or named is None or not hasattr(module, "share"):
        return client.update(x, y, client.noise(len(y))).materialise()
    if client.local is not None:
        raise BadInput(f"the defence {named.name} changes one gradient, and this client shares local training: "
                       "let it share a gradient")  # fmt: skip
    shared: Tensor = module.share(client, x, y, **named.settings)
    return shared


@torch.no_grad()
def sent(client: Client, x: Tensor, y: Tensor, named: Named) -> Tensor | None:
    """Which entries a defence sends, (D,) bool; None where it sends them all."""
    function = getattr(load(named.name), "sent", None)
    return None if function is None else function(client, x, y, **named.settings)
