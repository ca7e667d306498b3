"""Why does the model not explain the gradient? Other clients that cost little to try, compared by their evidence.

An attack on a client that is another one than its adversary believes finds a wrong image, and `pplleak.posterior.fit`
doubts it. What it is instead is asked of every alternative that can be written down, by its `evidence`, and the one
with the highest is named, if it explains the gradient by the same look that the model failed. The search ends at the
first that explains it and is better beyond all doubt: they stand in the order of their simplicity.
What an alternative leaves open (a factor, a mean and an sd, σ) is one more latent, with a weak prior.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client, extended
from pplleak.client.loss import DEFAULT
from pplleak.client.training import LocalTraining, Shares
from pplleak.client.update import Update
from pplleak.density import Model
from pplleak.density.surrogate import Surrogate
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.posterior.fit_words import P
from pplleak.progress import ProgressBar, silent
from pplleak.settings import Named
from pplleak.studies.attack.evidence import Altered, Alternative, evidence, free_rate

LARGEST = 2_000_000  # entries of an update up to which other clients cost little to try
MOST_LABELS = 100  # combinations of labels that are summed over
SEARCH = "search"  # the cause that is no other client: what was found is not where the model explains the gradient
CLEARLY = 5.0  # nats by which an alternative must be better


@dataclass(frozen=True)
class Cause:
    """What explains a gradient that the model does not.

    name   in one word, as a table has it; `search`: the model explains it, elsewhere; "" where nothing that was tried
           explains it
    words  in plain words
    nats   by which its evidence is above the model's
    p      p-value of its own worst misfit
    """

    name: str
    words: str
    nats: float
    p: float


def explain(
    model: Model, observed: Observation, progress: ProgressBar = silent, *, misfit: bool = True
) -> Cause | None:
    """The likeliest of the alternatives, or the Cause "" where none explains the gradient; None where none applies.

    Args:
        misfit: the gradient is not explained at what was found; else something else is doubted there (an image that
            the prior does not know), and the model itself is no answer.

    Draws by generators of its own; torch's stays as it was.
    """
    if isinstance(observed.client, Surrogate):
        return None
    if len(observed.g) > LARGEST:
        words = f"what else may explain it was not looked for: the update has more than {LARGEST:,} entries"
        return Cause("", words, 0.0, 0.0)
    tried = list(alternatives(model, observed))
    if not tried:
        return None
    own = Alternative("", "", model, observed.client, observed)
    found: list[Cause] = []
    # χ² of what explains g is known to √(2 D) or so: nobody is better by more than a few of these
    beyond_doubt = 10 * math.sqrt(2 * len(observed.g))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            base, p_own, _, _ = evidence(own)
        except (BadInput, RuntimeError, ValueError):
            return None
        if p_own >= P and misfit:
            words = "the same client explains it at another image: the search for that one has not ended"
            return Cause(SEARCH, words, 0.0, p_own)
        for k in progress("other clients", len(tried)):
            torch.manual_seed(k)
            try:
                value, p, words, _ = evidence(tried[k])
            except (BadInput, RuntimeError, ValueError):  # one that this client cannot be
                continue
            found.append(Cause(tried[k].name, words, value - base, p))
            if p >= P and value - base > beyond_doubt:
                break
    explaining = [c for c in found if c.nats > CLEARLY and c.p >= P]
    most = max((c.nats for c in explaining), default=0.0)
    # the first, and simplest, of those that no other is clearly better than
    named = next((c for c in explaining if c.nats > most - CLEARLY), None)
    if (named is None or named.name == "sigma") and _equal_steps(observed):
        return Cause("optimizer", "nearly every entry that moved has moved by the learning rate times the steps, as "
                     "under Adam or signs: other local training?", 0.0, 0.0)  # fmt: skip
    if named is not None:
        return named
    if p_own >= P:  # the gradient is explained, and nothing explains better what else is doubted
        return None
    best = max(found, key=lambda c: c.nats, default=None)
    near = f" (the nearest, {best.words}, does not, either)" if best and best.nats > CLEARLY else ""
    return Cause("", f"none of {len(found)} other clients explains it{near}: other weights or buffers?",
                 best.nats if best else 0.0, best.p if best else 0.0)  # fmt: skip


# -- what is tried -------------------------------------------------------------------------------------------------


def alternatives(model: Model, observed: Observation) -> Iterator[Alternative]:
    """Every other client that the observation might come from, as far as it is cheap to try."""
    client, size = observed.client, observed.batch_size

    def other(name: str, words: str, altered: Client, *read: Any, seen: Observation = observed) -> Alternative:
        return Alternative(name, words, model, altered, replace(seen, client=altered), read)

    if client.local is not None:
        for shares, words in (("difference", "θ_after − θ_before"), ("negative", "θ_before − θ_after"),
                              ("rate", "θ_before − θ_after, divided by the learning rate")):  # fmt: skip
            if shares != client.local.shares:
                local = replace(client.local, shares=cast(Shares, shares))
                yield other("shares", f"a client that shares {words}", replace(client, local=local))
    for name, words, factor in (
        ("half_loss", "half the loss", 0.5),
        ("double_loss", "twice the loss", 2.0),
        ("sum", f"a loss that is summed over the batch of {size}, not averaged", float(size)),
        ("turned", "its sign turned round (a step, not a gradient)", -1.0),
    ):
        if name != "sum" or size > 1:
            if name == "double_loss" and size == 2:
                continue  # is the sum over two
            yield other(name, words, _scaled(client, functools.partial(_scale, factor=factor)))
    if client.loss == DEFAULT:
        for name, loss, words in (
            ("label_smoothing", "cross_entropy:label_smoothing=0.1", "a label smoothing of 0.1"),
            ("label_smoothing", "cross_entropy:label_smoothing=0.2", "a label smoothing of 0.2"),
            ("mse", "mse", "the mean squared error (mse)"),
            ("bce", "bce", "a binary cross entropy of every class (bce)"),
        ):
            yield other(name, words, replace(client, loss=loss))
        for name, words in (("mse", "the squared error (mse)"), ("bce", "a binary cross entropy of every class (bce)")):
            free = _scaled(replace(client, loss=name), _free_scale)
            yield other(name, words + " times {log_scale}", free, ("log_scale", torch.exp))
    if size > 1 and not client.local and not client.mixes_batch:  # else examples have no parts of their own
        free = _scaled(client, functools.partial(_free_weights, size=size))
        yield other("class_weights", "examples that count differently (weights of the classes?)", free)
    words = "inputs that are normalised outside the network, by a mean of {shift} and an sd of {log_width}"
    free = extended(Altered, client, before=_normalised)
    yield other("normalised", words, free, ("shift", torch.clone), ("log_width", torch.exp))
    if observed.labels is not None and client.targets is None and 1 < client.labels**size <= MOST_LABELS:
        yield other("labels", "other labels: {y}", client, seen=replace(observed, labels=None))
    if client.local is not None:
        for optimizer in ("sgd:momentum=0.9", "sgd:momentum=0.9,nesterov=True", "adam"):
            trained = replace(client.local, optimizer=Named.parse(optimizer))
            yield other("optimizer", f"local training by {optimizer}", replace(client, local=trained))
        steps, epochs = client.local.steps, client.local.epochs
        for n in _nearby(steps if epochs is None else epochs):
            trained = replace(client.local, steps=n) if epochs is None else replace(client.local, epochs=n)
            what = "steps" if epochs is None else "epochs"
            yield other("local_steps", f"{n} local {what}", replace(client, local=trained))
        for size_ in _batch_sizes(client.local, size):
            trained = replace(client.local, batch_size=size_, shuffle=client.local.shuffle and size_ is not None)
            words = f"local batches of {size_ or size}"
            yield other("local_batch_size", words, replace(client, local=trained))
        free = extended(Altered, client, rate=free_rate)
        yield other("rate", "{log_rate} times the local learning rate", free, ("log_rate", torch.exp))
    yield other("scale", "{log_scale} times the loss", _scaled(client, _free_scale), ("log_scale", torch.exp))
    named = getattr(model, "keywords", {}).get("channel")
    if isinstance(named, Named) and "sigma" in named.settings:
        infers = functools.partial(model, channel=named.with_(sigma=channels.INFER))
        yield Alternative("sigma", "a noise of σ = {log_sigma}", infers, client, observed, (("log_sigma", torch.exp),))


def _nearby(count: int) -> list[int]:
    """Other numbers of steps that a client may have taken: one, one fewer, one more, twice as many."""
    return sorted({1, count - 1, count + 1, 2 * count} - {0, count})


def _batch_sizes(local: LocalTraining, examples: int) -> list[int | None]:
    """Other local batch sizes of a client with so many examples: one, half, twice as many, all (None)."""
    own = local.batch_size or examples
    near = sorted({1, own // 2, -(-own // 2), 2 * own, examples} - {0, own})
    return [None if n == examples else n for n in near if n <= examples]


def _scaled(client: Client, factors: Callable[[Update], Tensor]) -> Altered:
    """The client that shares Σ_b factors_b u_b, factors (…, B) or (…, 1)."""
    return extended(Altered, client, after=lambda u: u.scaled(factors(u)))


def _scale(u: Update, factor: float) -> Tensor:
    return torch.full((*u.shape, 1), factor)


def _free_scale(u: Update) -> Tensor:
    return pyro.sample("log_scale", dist.Normal(0.0, 2.0)).exp().expand(u.shape)[..., None]


def _free_weights(u: Update, size: int) -> Tensor:
    log = pyro.sample("log_weights", dist.Normal(torch.zeros(size), 1.0).to_event(1))
    return log.exp().expand(*u.shape, size)


def _normalised(x: Tensor) -> Tensor:
    shift, log_width = pyro.sample("shift", dist.Normal(0.5, 0.5)), pyro.sample("log_width", dist.Normal(-1.0, 1.0))
    shape = (*shift.shape, *(1,) * (x.dim() - shift.dim()))
    return (x - shift.reshape(shape)) / log_width.exp().reshape(shape)


def _equal_steps(observed: Observation) -> bool:
    """Whether most entries that have moved at all have moved by about lr · steps: no gradient's do. Adam's do, whose
    posterior has needles that no search finds."""
    local = observed.client.local
    if local is None or local.epochs is not None:
        return False
    sizes = observed.g.double().abs() / (local.lr * local.steps)
    moved = sizes[sizes > 0.1]
    return len(moved) > 0 and float(((moved > 0.5) & (moved < 1.5)).double().mean()) > 0.8
