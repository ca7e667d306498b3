"""Channels p(g | u), one a file: what the server sees of the update. The same object defends the client (`sample`) and
informs the adversary (`log_prob`); each is a Pyro distribution over a lazy `pplleak.client.update.Update`.

``NAME.py`` has a class whose name in lower case is NAME, a `Channel`: nothing else need be written for a new one. Its
settings are the arguments of its constructor behind `update`, all with defaults. One whose constructor takes tensors
has a class method `of`, whose arguments behind `public` are its settings.

What the files define is reached from here, too: ``channels.Gaussian`` and ``channels.by_layer`` import one file each.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from pplleak import folders, programs
from pplleak import settings as settings_of
from pplleak.channels._base import INFER as INFER
from pplleak.channels._base import MEDIAN, WIDTH
from pplleak.channels._base import Channel as Channel
from pplleak.channels._base import Noise as Noise
from pplleak.client import Client
from pplleak.client.update import Update
from pplleak.errors import BadInput, printable
from pplleak.settings import Named

FOLDER = Path(__file__).parent
GIVEN = {"update", "client", "batch_size", "public"}  # the arguments of `of` that are no settings


def names() -> dict[str, str]:
    """Every channel with the first line of its file, read without running it."""
    return folders.names(FOLDER)


@functools.cache  # a model asks at every trace
def get(name: str) -> type[Channel]:
    """The class of a channel.

    Raises:
        BadInput: there is none of that name.
    """
    module = folders.load(__name__, "channel", name)
    kinds = [k for n, k in vars(module).items() if n.lower() == name and inspect.isclass(k)]
    if not (kinds and issubclass(kinds[0], Channel)):
        raise BadInput(f"{module.__file__} has no channel: it needs a class '{name}', in any case, of Channel")
    return kinds[0]


def settable(name: str) -> Callable[..., Any]:
    """What takes the settings that can be written down: the constructor, or where that takes tensors, `of`."""
    kind = get(name)
    _, *beliefs = inspect.signature(kind).parameters.values()
    if all(p.default is not p.empty for p in beliefs):
        return kind
    return kind.of


def settings(name: str) -> list[programs.Setting]:
    """Everything that a channel can be set to, `sigma` included where it has one, with defaults and help lines."""
    return programs.settings(settable(name), positional=True, reserved=GIVEN)


@functools.lru_cache(maxsize=256)  # a model asks at every trace
def check(named: Named, where: str = "") -> Named:
    """The channel with all its settings at their values: those that are not given at their defaults.

    Args:
        where: what named it, at the head of the messages.

    Raises:
        BadInput: an unknown name or setting, or a value that the channel refuses.
    """
    head, name, known = f"{where}: " if where else "", named.name, settings(named.name)
    if "sigma" in named.settings and "sigma" not in (has := [s.name for s in known]):
        raise BadInput(f"{head}the channel {name} has no sigma: set {' and '.join(has)}")
    infers = named.settings.get("sigma") == INFER
    whole = settings_of.check(named.with_(sigma=1.0) if infers else named, known, f"the channel {name}", where)
    try:
        get(name).require(**whole.settings)
    except (TypeError, OverflowError) as error:
        raise BadInput(
            f"{head}the channel {name} cannot be set to {printable(dict(whole.settings))}: {error}"
        ) from error
    return whole.with_(sigma=INFER) if infers else whole


def inferred(named: Named) -> Named:
    """The channel as a model believes it: with `sigma=infer`, log σ is the latent site `log_sigma` of the model.

        log σ ~ Normal(log 0.01, 3²)

    One that is told is left as it is.
    """
    if named.settings.get("sigma") != INFER:
        return named
    return named.with_(sigma=pyro.sample("log_sigma", dist.Normal(math.log(MEDIAN), WIDTH)).exp())


def make(named: Named, update: Update, client: Client, batch_size: int, public: str | Tensor | None) -> Channel:
    """p(g | u) of one update.

    Args:
        update: u(x, y), as `client.update` returns it. batch_size: examples behind it.
        public: images that the server has, (N, *input_shape) or the name of a dataset, or None: what other clients are
            simulated on.

    Raises:
        BadInput: as `check`; or the channel cannot be that of this client.
    """
    return get(named.name).of(update, client, batch_size, public, **named.settings)


def __getattr__(name: str) -> Any:
    """What a file of the folder defines, imported when it is first asked for."""
    stem = None if name.startswith("_") else folders.where(FOLDER, name)
    if stem is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(folders.load(__name__, "channel", stem), name)
    globals()[name] = found
    return found
