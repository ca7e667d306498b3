"""The update materialised: what a client does, step by step, on parameters of its own for every row of examples.

This is the general fallback, and the reference that the lazy update is tested against. `vmap` runs the forward pass on
one copy of the parameters a row, and plain autograd differentiates it: differentiated once more, `vmap(grad)` would
forget how the statistics of a LayerNorm depend on its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pplleak.client import kernels
from pplleak.client.loss import total
from pplleak.errors import BadInput, require_positive

MOST = 10_000  # local steps, and examples of one
CHUNK = 64  # rows at a time: the graph holds one whole gradient a row


@dataclass(frozen=True)
class LocalTraining:
    """FedAvg (McMahan et al. 2017): the client trains on its batch and shares how its weights moved.

        θ_{k+1} = θ_k − lr ∇θ (1/b) Σ_{batch k} ℓ(f_θ_k(x), y)        u = θ_steps − θ_0

    lr          learning rate η, positive
    steps       local steps of SGD
    batch_size  b, examples a step: each step takes the next b of the client's, round and round; None takes them all
    """

    lr: float
    steps: int = 1
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_positive(**{"the local learning rate": self.lr})
        for name, value in (("the number of local steps", self.steps), ("the local batch size", self.batch_size)):
            if value is not None and not 1 <= value <= MOST:
                raise BadInput(f"{name} must be at least 1 and at most {MOST}, not {value}")

    def batches(self, examples: int) -> list[list[int]]:
        """Which of the client's examples each step takes."""
        size = examples if self.batch_size is None else self.batch_size
        if size > examples:
            raise BadInput(f"the local batch size is {size}, but the client has only {examples} examples")
        return [[(k * size + i) % examples for i in range(size)] for k in range(self.steps)]


def gradients(
    network: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    noise: Tensor | None = None,
    *,
    loss: str = "cross_entropy",
) -> Tensor:
    """∇θ Σ ℓ(f_θ(x), y) of every row on its own, (rows, size), differentiable in x and in the noise.

    Args:
        parameters: those to differentiate, in order. x: (rows, examples, *input_shape). y: (rows, examples).
        noise: (rows, examples, *noise_shape), of a network that draws some. loss: a name of `pplleak.client.loss`.
    """
    given = (x, y) if noise is None else (x, y, noise)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    parts = []
    for chunk in zip(*(t.split(CHUNK) for t in given), strict=True):
        copies = _copies(parameters, len(chunk[0]))
        parts.append(_flat(_gradient(network, copies, *chunk, loss=loss, differentiable=differentiable)))
    return torch.cat(parts)


def movement(
    network: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    training: LocalTraining,
    *,
    loss: str = "cross_entropy",
) -> Tensor:
    """θ_after − θ_before of every row, (rows, size), differentiable in x; arguments as for `gradients`."""
    differentiable = torch.is_grad_enabled() and x.requires_grad
    parts = []
    for xk, yk in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        before = weights = _copies(parameters, len(xk))
        for batch in training.batches(x.shape[1]):
            part = xk[:, batch], yk[:, batch]
            slopes = _gradient(network, weights, *part, loss=loss, differentiable=differentiable)
            weights = {n: w - training.lr / len(batch) * slopes[n] for n, w in weights.items()}
            if not differentiable:
                weights = {n: w.detach().requires_grad_() for n, w in weights.items()}
        parts.append(_flat({n: w - before[n] for n, w in weights.items()}))
    moved = torch.cat(parts)
    return moved if differentiable else moved.detach()


def _copies(parameters: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    return {n: p.detach().expand(rows, *p.shape).requires_grad_() for n, p in parameters.items()}


def _flat(values: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([v.reshape(len(v), -1) for v in values.values()], 1)


def _gradient(
    network: nn.Module,
    copies: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    *noise: Tensor,
    loss: str,
    differentiable: bool,
) -> dict[str, Tensor]:
    """∇θ of the summed loss at every row's own copy of the parameters."""
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

    def row(given: dict[str, Tensor], xs: Tensor, ys: Tensor, *drawn: Tensor) -> Tensor:
        used = {name: given.get(first, values[first]) for name, first in ties.items()}
        output = functional_call(network, {**buffers, **used}, (xs, *drawn), tie_weights=False)
        return total(loss, output, ys)

    with torch.enable_grad(), kernels.plain():
        summed = vmap(row, randomness="error")(dict(copies), x, y, *noise).sum()
        gradients = torch.autograd.grad(
            summed, list(copies.values()), create_graph=differentiable, materialize_grads=True
        )
    return dict(zip(copies, gradients, strict=True))
