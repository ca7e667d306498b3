"""The loss ℓ of a client: what each example of a batch adds, one function each, and how the batch is reduced.

    cross_entropy      cross_entropy:label_smoothing=0.1,reduction=sum      mse      bce:weights=(1.0,2.5)

A function loss(logits, y, *, …settings) -> (examples,) of the network's output (examples, num_classes) and labels y
(examples,) is all that a new one needs: it is found here by its name. Two settings belong to all of them:

    reduction   mean: Σ_b w_b ℓ_b / Σ_b w_b;   sum: Σ_b w_b ℓ_b
    weights     of the classes, w_b = weights[y_b], as PyTorch's `weight`; () weighs all alike

Networks that draw noise return their own penalty beside the logits (`pplleak.federation.defences.precode`), which is
added to ℓ_b.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pplleak import sources
from pplleak.errors import BadInput, unknown
from pplleak.settings import Named

Output = Tensor | tuple[Tensor, Tensor]  # logits; of a network with noise, also what each example adds to the loss
DEFAULT = "cross_entropy"
ARGUMENTS = ["logits", "y"]  # of a loss, before its settings
SHARED: dict[str, Any] = {"reduction": "mean", "weights": ()}


def cross_entropy(logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """−Σ_k q_k log softmax(logits)_k in nats, q = (1 − s) e_y + s / K with s the label smoothing."""
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)


def bce(logits: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy of every logit against the one-hot label, its mean over the K classes, in nats."""
    return F.binary_cross_entropy_with_logits(logits, _one_hot(logits, y), reduction="none").mean(-1)


def mse(logits: Tensor, y: Tensor) -> Tensor:
    """Squared error of the outputs against the one-hot label, its mean over the K classes."""
    return (logits - _one_hot(logits, y)).square().mean(-1)


def _one_hot(logits: Tensor, y: Tensor) -> Tensor:
    return (torch.arange(logits.shape[-1], device=y.device) == y[..., None]).to(logits.dtype)


@dataclass(frozen=True)
class Loss:
    """A loss with its settings at their values; `each` gives ℓ_b (examples,)."""

    name: str
    each: Callable[[Tensor, Tensor], Tensor]
    reduction: str
    weights: tuple[float, ...]

    @property
    def sums_to_zero(self) -> bool:
        """Whether Σ_k ∂ℓ/∂logit_k = 0, as of every cross entropy."""
        return self.name == DEFAULT

    def shares(self, y: Tensor) -> Tensor:
        """w_b, over Σ_b w_b where the reduction is a mean: what each example's ℓ_b counts, in the shape of y (…, B)."""
        one = torch.ones(y.shape, dtype=torch.float64, device=y.device)
        w = one.new_tensor(self.weights)[y] if self.weights else one
        return w / w.sum(-1, keepdim=True) if self.reduction == "mean" else w


def names() -> dict[str, str]:
    """Every loss with the first line of its docstring."""
    return sources.functions(Path(__file__), ARGUMENTS)


@functools.cache  # a client asks at every step
def get(text: str) -> Loss:
    """The loss of a name with settings, `cross_entropy:label_smoothing=0.1`.

    Raises:
        BadInput: there is none of that name, with the near ones; an unknown setting; a value that is refused.
    """
    named = Named.parse(text)
    if named.name not in (known := names()):
        raise unknown("loss", named.name, known)
    function = globals()[named.name]
    own = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for setting in named.settings:
        if setting not in (*own, *SHARED):
            raise BadInput(f"the loss {named.name} has no setting '{setting}': it has {', '.join((*own, *SHARED))}")
    reduction, weights = (named.settings.get(n, default) for n, default in SHARED.items())
    if reduction not in ("mean", "sum"):
        raise BadInput(f"the reduction of a loss is mean or sum, not {reduction!r}")
    weights = weights if isinstance(weights, tuple) else (weights,)
    if not all(isinstance(w, (int, float)) and math.isfinite(w) and w > 0 for w in weights):
        raise BadInput(f"the weights of a loss are one positive number a class, not {weights!r}")
    settings = {n: v for n, v in named.settings.items() if n in own}
    smoothing = settings.get("label_smoothing", 0.0)
    if not (isinstance(smoothing, (int, float)) and 0 <= smoothing <= 1):
        raise BadInput(f"label_smoothing must lie between 0 and 1, not {smoothing!r}")
    return Loss(named.name, functools.partial(function, **settings), reduction, tuple(map(float, weights)))


def check(text: str, num_classes: int) -> None:
    """Raise BadInput where a client of so many classes cannot have this loss."""
    loss = get(text)
    if loss.weights and len(loss.weights) != num_classes:
        raise BadInput(
            f"the loss has {len(loss.weights)} weights, and the network {num_classes} classes: give one each"
        )
    if num_classes == 1 and loss.name == DEFAULT:
        raise BadInput("the network has one logit, and the cross entropy of one class is 0 whatever the data: its "
                       "gradient says nothing; give a network with a logit for each class")  # fmt: skip


def require_cross_entropy(loss: str, who: str) -> None:
    """Raise BadInput, in the name of what reads δ = softmax − e_y off a gradient, for a client of another loss."""
    if loss != DEFAULT:
        raise BadInput(f"{who} the mean cross entropy, and the client's loss is {loss}: take another way")


def total(loss: str, output: Output, y: Tensor, shares: Tensor) -> Tensor:
    """Σ_b shares_b ℓ_b, with what the network adds to ℓ_b; y and shares (examples,), the latter of `Loss.shares`."""
    logits, penalty = output if isinstance(output, tuple) else (output, None)
    each = get(loss).each(logits, y)
    each = each if penalty is None else each + penalty.reshape(each.shape)
    return (shares.to(each.dtype) * each).sum()
