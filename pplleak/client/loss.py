"""The loss ℓ of a client, one function each: what it sums over the examples of a batch. The client takes the mean.

A function loss(output, y) -> () of the network's output (examples, num_classes) and labels y (examples,) is all that a
new one needs: it is found here by its name. Networks that draw noise return their own penalty beside the logits
(`pplleak.federation.defences.precode`), which is added.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from pplleak.errors import unknown

Output = Tensor | tuple[Tensor, Tensor]  # logits; of a network with noise, also what each example adds to the loss
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Σ_b −log softmax(logits_b)[y_b], in nats."""
    return F.cross_entropy(logits, y, reduction="sum")


def names() -> dict[str, str]:
    """Every loss with the first line of its docstring."""
    own = {n: f for n, f in globals().items() if inspect.isfunction(f) and f.__module__ == __name__}
    losses = {n: f for n, f in own.items() if list(inspect.signature(f).parameters)[1:] == ["y"]}
    return {n: (f.__doc__ or "").splitlines()[0] for n, f in losses.items()}


@functools.cache
def get(name: str) -> Loss:
    """The loss of a name; raises BadInput, with the near names, where there is none."""
    if name not in (known := names()):
        raise unknown("loss", name, known)
    loss: Loss = globals()[name]
    return loss


def total(loss: str, output: Output, y: Tensor) -> Tensor:
    """Σ_b ℓ_b, plus what the network adds to it; y (examples,)."""
    logits, penalty = output if isinstance(output, tuple) else (output, None)
    summed = get(loss)(logits, y)
    return summed if penalty is None else summed + penalty.sum()
