"""Channels p(g | u): what the server sees of the update. The same object defends the client (`sample`) and informs
the adversary (`log_prob`); each is a Pyro distribution over a lazy `pplleak.client.update.Update`."""

from pplleak.channels.aggregated import Aggregated, moments, others
from pplleak.channels.base import Channel, Noise
from pplleak.channels.directional import Directional
from pplleak.channels.dpsgd import DPSGD, require_examples
from pplleak.channels.elastic import Elastic
from pplleak.channels.gaussian import Gaussian, Weighted, by_layer
from pplleak.channels.laplace import Laplace
from pplleak.channels.pruned import Masked, Order, Pruned
from pplleak.channels.quantised import Quantised, Sign
from pplleak.channels.topk import TopK

__all__ = [
    "DPSGD",
    "Aggregated",
    "Channel",
    "Directional",
    "Elastic",
    "Gaussian",
    "Laplace",
    "Masked",
    "Noise",
    "Order",
    "Pruned",
    "Quantised",
    "Sign",
    "TopK",
    "Weighted",
    "by_layer",
    "moments",
    "others",
    "require_examples",
]


def names():  # type: ignore  # until the room is found by listing
    from pplleak import programs

    return {n: (c.__doc__ or "") for n, c in programs.named_channels().items()}


def get(name):  # type: ignore
    from pplleak import programs

    return programs.channel(name)


def check(named, where=""):  # type: ignore
    import inspect

    import torch

    from pplleak import programs
    from pplleak.client.update import DenseUpdate
    from pplleak.errors import BadInput
    from pplleak.settings import Named

    kind = get(named.name)
    constructor = programs.spelled(kind)
    given = dict(named.settings)
    sigma = given.pop("sigma", None)
    programs.require_settings(kind, given, where or named.name, f"the channel {named.name}")
    chosen = {s.name: s.default for s in programs.settings(kind)} | given
    if "sigma" in inspect.signature(constructor).parameters:
        chosen["sigma"] = 0.1 if sigma is None else sigma
    elif sigma is not None:
        raise BadInput(f"{where}: the channel {named.name} has no sigma: set {' and '.join(chosen)}")
    try:
        if constructor is kind:
            kind(DenseUpdate(torch.zeros(1, 1)), **chosen)
    except TypeError as error:
        raise BadInput(f"{where}: the channel {named.name} cannot be set to {chosen}: {error}") from error
    return Named(named.name, chosen)


def make(named, update, client, batch_size, public=None):  # type: ignore
    return get(named.name).of(update, client, batch_size, public, **named.settings)
