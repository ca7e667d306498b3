"""The update materialised: what a client does, step by step, on parameters of its own for every row of examples.

This is the general fallback, and the reference that the lazy update is tested against. `vmap` runs the forward pass on
one copy of the parameters a row, and plain autograd differentiates it: differentiated once more, `vmap(grad)` would
forget how the statistics of a LayerNorm depend on its input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pplleak.client import kernels, optimisers
from pplleak.client.loss import get, total
from pplleak.client.optimisers import At, State
from pplleak.errors import BadInput, require_positive
from pplleak.settings import Named

Shares = Literal["difference", "negative", "rate"]
MOST = 10_000  # local steps, epochs, and examples of a step: a file may not ask for any amount of work
CHUNK = 64  # rows at a time: the graph holds one whole gradient a row


@dataclass(frozen=True)
class LocalTraining:
    """FedAvg (McMahan et al. 2017): the client trains on its batch and shares how its weights moved.

        θ_{k+1} = θ_k − lr ∇θ (1/b) Σ_{batch k} ℓ(f_θ_k(x), y)        u = θ_steps − θ_0        (1/b: as the loss has it)

    The order of a step is that of the usual loop: the loss with FedProx' term, its gradient, clipping, the optimiser.

    lr          learning rate η, positive
    steps       local steps of the optimiser
    batch_size  b, examples a step: each step takes the next b of the client's, round and round; None takes them all
    optimizer   how a step follows the gradient, with its settings (`pplleak.client.optimisers`): `adam:eps=1e-8`
    epochs      instead of steps: passes over the client's examples as a DataLoader makes them, in order, each with a
                last batch of what is left over; None counts steps
    drop_last   with epochs: the last batch of an epoch is left out where it is short
    shuffle     with epochs: the client draws the order of its examples anew for every epoch, and nobody else knows it
    schedule    of the learning rate, with its settings: `cosine`, `step:step_size=2,gamma=0.5,per=epoch`
    clip        the longest gradient of all parameters together that a step follows; None clips nothing
    prox        μ of FedProx (Li et al. 2020), which adds μ/2 ‖θ − θ_0‖² to the loss
    shares      u: the `difference` θ_after − θ_before, its `negative`, or the `rate`, that negative divided by lr

    Raises:
        BadInput: a setting that is impossible by itself, or in vain beside another.
    """

    lr: float
    steps: int = 1
    batch_size: int | None = None
    optimizer: Named = Named("sgd")
    epochs: int | None = None
    drop_last: bool = False
    shuffle: bool = False
    schedule: Named = Named("constant")
    clip: float | None = None
    prox: float = 0.0
    shares: Shares = "difference"

    def __post_init__(self) -> None:
        require_positive(**{"the local learning rate": self.lr})
        if self.clip is not None:
            require_positive(**{"the norm that local training clips at": self.clip})
        if not 0 <= self.prox < math.inf:
            raise BadInput(f"the weight of FedProx' term must be 0 or more, not {self.prox}")
        counts = {"steps": self.steps, "epochs": self.epochs}
        for name, value in {**{f"the number of local {n}": v for n, v in counts.items()},
                            "the local batch size": self.batch_size}.items():  # fmt: skip
            if value is not None and (not isinstance(value, int) or not 1 <= value < MOST):
                raise BadInput(f"{name} must be a whole number, at least 1 and below {MOST:,}, not {value}")
        if self.epochs is not None and self.steps != 1:
            raise BadInput("local training counts its epochs or its steps: leave one of them out")
        if not isinstance(self.drop_last, bool):
            raise BadInput(f"drop_last is True or False, not {self.drop_last!r}")
        if self.drop_last and self.epochs is None:
            raise BadInput("without epochs no local batch is short, so there is none to drop: leave drop_last out, or "
                           "say how many epochs")  # fmt: skip
        if not isinstance(self.shuffle, bool):
            raise BadInput(f"shuffle is True or False, not {self.shuffle!r}")
        if self.shuffle and (self.epochs is None or self.batch_size is None):
            raise BadInput("a client shuffles its examples in every epoch, before it cuts them into batches: say how "
                           "many epochs, and the local batch size, or leave shuffle out")  # fmt: skip
        if self.shares not in get_args(Shares):
            raise BadInput(f"a client shares its {', '.join(get_args(Shares))}, not {self.shares!r}")
        object.__setattr__(self, "optimizer", optimisers.check("optimizer", self.optimizer))
        object.__setattr__(self, "schedule", optimisers.check("schedule", self.schedule))
        self._rate(At(0, 1, 0, self.epochs or 0))  # a schedule that counts epochs needs some

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> LocalTraining:
        """What `to_json` wrote, checked anew.

        Raises:
            BadInput: as the constructor. TypeError, OverflowError: a field is unknown, missing or no number.
        """
        parts = [n for n in ("optimizer", "schedule") if n in kept]
        named = {n: Named.from_json(kept[n], f"the {n} of local training") for n in parts}
        return cls(**{**kept, **named})

    def to_json(self) -> dict[str, Any]:
        """As an observation's file has it: learning rate, steps and batch size, and what is not as in plain SGD."""
        plain, always = LocalTraining(self.lr), ("lr", "steps", "batch_size")
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        said = {n: v for n, v in said.items() if n in always or v != getattr(plain, n)}
        return {n: v.to_json() if isinstance(v, Named) else v for n, v in said.items()}

    def batches(self, examples: int) -> Iterator[list[int]]:
        """Which of the client's examples each step takes."""
        size = examples if self.batch_size is None else self.batch_size
        if self.epochs is None and size > examples:
            raise BadInput(f"the local batch size is {size}, but the client has only {examples} examples")
        if self.drop_last and size > examples:
            raise BadInput(f"the local batch size is {size}, and the client's {examples} examples are one short batch, "
                           "which drop_last leaves out: nothing is left to train on")  # fmt: skip
        if self.epochs is None:
            return ([(k * size + i) % examples for i in range(size)] for k in range(self.steps))
        end = examples - examples % size if self.drop_last else examples
        return (list(range(k, min(k + size, end))) for _ in range(self.epochs) for k in range(0, end, size))

    def passes(self, examples: int) -> tuple[int, int]:
        """Epochs, and the steps of each; one of all steps where no epochs are counted."""
        if self.epochs is None:
            return 1, self.steps
        size = self.batch_size or examples
        return self.epochs, examples // size if self.drop_last else -(-examples // size)

    def rates(self, examples: int) -> Iterator[float]:
        """The learning rate of each step."""
        epochs, steps = self.passes(examples)
        places = ((e * steps + k, e) for e in range(epochs) for k in range(steps))
        return (self._rate(At(k, epochs * steps, e, self.epochs or 0)) for k, e in places)

    @property
    def factor(self) -> float:
        """c of u = c (θ_after − θ_before)."""
        return {"difference": 1.0, "negative": -1.0, "rate": -1 / self.lr}[self.shares]

    def _rate(self, at: At) -> float:
        try:
            rate: float = optimisers.bound("schedule", self.schedule)(self.lr, at)
        except OverflowError as error:
            raise BadInput(
                f"the learning rate's schedule {self.schedule} goes to infinity: take a smaller gamma"
            ) from error
        return rate


def gradients(
    network: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    shares: Tensor,
    noise: Tensor | None = None,
    *,
    loss: str,
    looped: bool = False,
) -> Tensor:
    """∇θ Σ_b shares_b ℓ(f_θ(x_b), y_b) of every row on its own, (rows, size), differentiable in x and in the noise.

    Args:
        parameters: those to differentiate, in order. x: (rows, examples, *input_shape). y: (rows, examples), or
            vectors (rows, examples, K).
        shares: (rows, examples), what each example counts (`pplleak.client.loss.Loss.shares`).
        noise: (rows, examples, *noise_shape), of a network that draws some. loss: a name of `pplleak.client.loss`.
        looped: one row after the other, for a network that vmap has no rule for.
    """
    given = (x, y, shares) if noise is None else (x, y, shares, noise)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    parts = []
    for chunk in zip(*(t.split(CHUNK) for t in given), strict=True):
        copies = _copies(parameters, len(chunk[0]))
        parts.append(_flat(_gradient(network, copies, *chunk, loss=loss, looped=looped, differentiable=differentiable)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)  # a copy of a deep network's gradient takes its time


def gradients_at(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    shares: Tensor,
    *,
    loss: str,
    looped: bool = False,
) -> Tensor:
    """As `gradients`, every row at weights (rows, *shape) of its own, in which the result is differentiable, too."""
    differentiable = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights.values()))
    own = {n: w if w.requires_grad else w.detach().requires_grad_() for n, w in weights.items()}
    return _flat(_gradient(network, own, x, y, shares, loss=loss, looped=looped, differentiable=differentiable))


def movement(
    network: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    training: LocalTraining,
    *,
    loss: str,
    looped: bool = False,
    shared: Sequence[str] | None = None,
    order: Tensor | None = None,
    rate: Tensor | None = None,
) -> Tensor:
    """u of every row, what is shared of θ_after − θ_before, (rows, size), differentiable in x; arguments as
    for `gradients`.

    Args:
        shared: of these parameters alone; None: of all that are trained.
        order: (rows, epochs, examples), which example stands where (`pplleak.client.orders`); None: in every epoch as
            they are given.
        rate: (rows,), what every learning rate is multiplied by; None: 1. Differentiable.
    """
    differentiable = torch.is_grad_enabled() and (x.requires_grad or (rate is not None and rate.requires_grad))
    optimiser = optimisers.bound("optimizer", training.optimizer)
    parts = []
    orders, factors = ([None] * -(-len(x) // CHUNK) if t is None else t.split(CHUNK) for t in (order, rate))
    epoch_steps = training.passes(x.shape[1])[1]
    for xk, yk, placed, factor in zip(x.split(CHUNK), y.split(CHUNK), orders, factors, strict=True):
        before = weights = _copies(parameters, len(xk))
        states: dict[str, State] = dict.fromkeys(weights, ())
        steps = zip(training.batches(x.shape[1]), training.rates(x.shape[1]), strict=True)
        for k, (batch, lr) in enumerate(steps, 1):
            if placed is None:
                xs, ys = xk[:, batch], yk[:, batch]
            else:
                at = torch.arange(len(xk), device=xk.device)[:, None], placed[:, (k - 1) // epoch_steps, batch]
                xs, ys = xk[at], yk[at]
            part = xs, ys, get(loss).shares(ys, xs)
            slopes = _gradient(network, weights, *part, loss=loss, looped=looped, differentiable=differentiable)
            with torch.set_grad_enabled(differentiable):
                slopes = _followed(slopes, weights, before, training)
                moved = {n: optimiser(w, slopes[n], states[n], k, lr * _over(factor, w)) for n, w in weights.items()}
            weights, states = ({n: m[i] for n, m in moved.items()} for i in (0, 1))
            if not differentiable:
                weights = {n: w.detach().requires_grad_() for n, w in weights.items()}
        parts.append(_flat({n: weights[n] - before[n] for n in (weights if shared is None else shared)}))
    u = training.factor * torch.cat(parts)
    if rate is not None and training.shares == "rate":
        u = u / rate[:, None]
    return u if differentiable else u.detach()


def _over(factor: Tensor | None, w: Tensor) -> Any:
    """A number a row (rows,) as one for every entry of w (rows, *shape); None is 1."""
    return 1.0 if factor is None else factor.reshape(-1, *[1] * (w.dim() - 1))


def _followed(
    slopes: dict[str, Tensor], weights: Mapping[str, Tensor], before: Mapping[str, Tensor], training: LocalTraining
) -> dict[str, Tensor]:
    """What the optimiser is given of the loss's gradient: with FedProx' term, and clipped."""
    if training.prox:
        slopes = {n: s + training.prox * (weights[n] - before[n]) for n, s in slopes.items()}
    return slopes if training.clip is None else optimisers.clipped(slopes, training.clip)


def _copies(parameters: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    return {n: p.detach().expand(rows, *p.shape).requires_grad_() for n, p in parameters.items()}


def _flat(values: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([v.reshape(len(v), -1) for v in values.values()], 1)


def _gradient(
    network: nn.Module,
    copies: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    shares: Tensor,
    *noise: Tensor,
    loss: str,
    looped: bool,
    differentiable: bool,
) -> dict[str, Tensor]:
    """∇θ of the batch's loss at every row's own copy of the parameters."""
    values = dict(network.named_parameters())
    buffers = dict(network.named_buffers())
    owner = {id(p): name for name, p in values.items()}
    # functional_call's own tie_weights puts a wrapped tensor back into a module that is registered twice
    ties = {
        f"{prefix}.{leaf}" if prefix else leaf: owner[id(p)]
        for prefix, module in network.named_modules()
        for leaf, p in module._parameters.items()
        if p is not None
    }

    def row(given: dict[str, Tensor], xs: Tensor, ys: Tensor, counts: Tensor, *drawn: Tensor) -> Tensor:
        used = {name: given.get(first, values[first]) for name, first in ties.items()}
        output = functional_call(network, {**buffers, **used}, (xs, *drawn), tie_weights=False)
        return total(loss, output, xs, ys, counts)

    with torch.enable_grad(), kernels.plain():
        if looped:
            rows = zip(x, y, shares, *noise, strict=True)
            each = [row({n: c[k] for n, c in copies.items()}, *given) for k, given in enumerate(rows)]
            summed = torch.stack(each).sum()
        else:
            summed = vmap(row, randomness="error")(dict(copies), x, y, shares, *noise).sum()
        gradients = torch.autograd.grad(
            summed, list(copies.values()), create_graph=differentiable, materialize_grads=True
        )
    return dict(zip(copies, gradients, strict=True))
