"""The gradient of a batch in closed form: each layer's input a and output gradient δ, and never ∇θ itself.

∇W ℓ = Σ_b δ_b a_bᵀ,   ∇b ℓ = Σ_b δ_b,   a and δ of every layer read by `pplleak.client.taps` in one pass
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pplleak.client import taps
from pplleak.client.entries import Entries, Lookup
from pplleak.client.factors import Factor
from pplleak.client.loss import Output, get, total
from pplleak.client.update import LazyUpdate

if TYPE_CHECKING:
    from pplleak.client.client import Client


def update(client: Client, x: Tensor, y: Tensor, noise: Tensor | None = None) -> LazyUpdate:
    """u(x, y) of a client that is `lazy`, from one pass.

    Args:
        x: (*chains, batch, *input_shape). Differentiable.
        y: (*chains, batch), or (*chains, batch, K): as the loss compares with them (`Client.target`).
        noise: ε, (*chains, batch, *noise_shape), of a network that draws some. Differentiable.
    """
    each = get(client.loss).shares(y, x)
    lead, batch, slices = each.shape[:-1], each.shape[-1], client.slices
    shares, (flat_x, flat_y) = each.flatten(), (t.flatten(0, len(lead)) for t in (x, y))

    def loss(output: Output) -> Tensor:  # each chain's own, all in one sum
        return total(client.loss, output, flat_x, flat_y, shares)

    given = [flat_x] if noise is None else [flat_x, noise.flatten(0, len(lead))]

    def unflat(t: Tensor) -> Tensor:
        return t.reshape(*lead, batch, *t.shape[1:])

    names = {id(p): name for name, p in client.parameters.items()}
    factors: list[Factor | Lookup | Entries] = []
    copies: list[taps.Copies] = []
    for part in taps.read(client.network, given, loss, names):
        if isinstance(part, taps.Copies):
            copies.append(part)
        elif isinstance(part, taps.Looked):
            rows, where = client.layers[part.name][0], slices[part.name]
            factors.append(Lookup(unflat(part.ids), unflat(part.deltas), rows, where))
        else:
            weight, bias = (None if n is None else slices[n] for n in (part.weight, part.bias))
            factors.append(Factor(unflat(part.inputs), unflat(part.deltas), weight, bias, part.window))
    if copies:  # all in one: a deep network has a hundred of them
        examples = unflat(torch.cat([part.gradients for part in copies], 1))
        factors.append(Entries(examples, tuple(slices[part.name] for part in copies)))
    return LazyUpdate(tuple(factors), client.update_size)
