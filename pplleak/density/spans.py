"""The span of what a layer takes: the rows of its gradient.

For a layer W that every token goes through, ∇W = Σ_r δ_r a_rᵀ: its rows are combinations of its inputs a_r, and if
these are fewer than they have entries, and the δ_r are linearly independent, its row space is their span:

    ‖a − P a‖ / ‖a‖ = 0  for every input there was,    about √(1 − rank / d) for any other,    P the projection

The first layer takes a token's embedding at its position (q, k and v stacked: of a causal network the first token has
no gradient at q). The fully connected layer behind the attention takes what a token has become by the tokens that it
sees. That one has full rank where the second layer's projections, read at one token alone by a classifier, have not.

Of LoRA's adapters W x + B A x it is the same: ∇A = Σ_r Bᵀδ_r a_rᵀ spans the inputs, if its rank is above their number.
As long as B is 0 there is no such gradient, and ∇B = Σ_r δ_r (A a_r)ᵀ spans what A makes of them.

Source: Petrov, Dimitrov, Baader, Müller, Vechev 2024 (DAGER), section 4.1: the rank, the projection, the first layer.
They take the next layer's projections for the second test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation

ROWS = 2**23  # entries of inputs at a time
FARTHEST = 0.5  # of a vector may lie outside of a span it counts as in
SHARP = 1e-4  # a blur up to which no other input comes so near
ROUNDING = 10.0  # times the machine's precision and the largest singular value: the least that counts


@dataclass(frozen=True, eq=False)
class Layer:
    """Weights that take the same input: their parameters' names, and whether each lies transposed, (fan_in, fan_out);
    module: the first of them."""

    weights: tuple[tuple[str, bool], ...]
    module: nn.Module


class _Enough(Exception):
    """The layer's input is there: what follows is not computed."""


def layers(client: Client) -> tuple[Layer, Layer | None]:
    """The projections q, k and v of the first attention, or their adapters, and the fully connected layer behind it,
    None where that is frozen.

    Raises:
        BadInput: there is no attention, nothing of it is shared, or the client shares local training.
    """
    if client.local is not None:
        raise BadInput("the span test is of one gradient, and this client shares local training")
    if client.vocabulary is None:
        raise BadInput("the span test is of sentences, and this client takes none: attack text, FILE.txt")
    groups: dict[int, list[tuple[str, nn.Module, Tensor]]] = {}
    handles = []
    for name, module in client.network.named_modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")  # its own: a wrapper may lend another's
        if weight is not None and weight.dim() == 2 and not isinstance(module, nn.Embedding):

            def watch(m: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                # the tensor is held: its id stays its own
                groups.setdefault(id(args[0]), []).append((name, m, args[0]))

            handles.append(module.register_forward_pre_hook(watch))
    try:
        with torch.no_grad():
            length = client.input_shape[0]
            client.network(torch.ones(2, length, dtype=client.dtype, device=client.device))
    finally:
        for handle in handles:
            handle.remove()
    every = [of for of in groups.values() if of[0][2].dim() == 3]
    width = every[0][0][2].shape[-1] if every else 0
    found = [of for of in every if of[0][2].shape[-1] >= width]
    if len(found) < 3 or sum(f for _, m, _ in found[0] if (f := _fan(m)) % width == 0) != 3 * width:
        raise BadInput("the network has no attention layer at its front whose q, k and v take the tokens: the span "
                       "test cannot be made; take the inference isir")  # fmt: skip
    first, behind = (_layer(of, client) for of in (found[0], found[2]))
    correcting = [of for of in every[: every.index(found[1])] if of[0][2].shape[-1] < width]  # B, of each adapter
    if correcting and not any(_entries(m).any() for of in correcting for _, m, _ in of):
        first = _layer(correcting[-1], client)
    if first is None:
        raise BadInput(f"the gradient of '{found[0][0][0]}.weight' is not shared, and the span test reads it")
    return first, behind


def _layer(of: list[tuple[str, nn.Module, Tensor]], client: Client) -> Layer | None:
    """The layers of one input that are trained; None where none is.

    Raises:
        BadInput: one that is trained is withheld.
    """
    names = [f"{n}.weight" for n, _, _ in of]
    if missing := [n for n in names if n in client.withheld]:
        raise BadInput(f"the gradient of '{missing[0]}' is not shared, and the span test reads it")
    own = [(n, m) for n, (_, m, _) in zip(names, of, strict=True) if n in client.layers]
    return Layer(tuple((n, _transposed(m)) for n, m in own), own[0][1]) if own else None


def _transposed(module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear)


def _fan(module: nn.Module) -> int:
    return _entries(module).shape[1 if _transposed(module) else 0]


def _entries(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


@dataclass(frozen=True, eq=False)
class Span:
    """An orthonormal basis (rank, d) of a layer's inputs, float64; blur: what rounding and noise make over its least
    singular value, by which a direction may be off; rounding: of the inputs themselves."""

    basis: Tensor
    blur: float
    rounding: float

    @property
    def full(self) -> bool:
        """Whether it tells nothing apart: what a LayerNorm returns sums to 0, and has a dimension less."""
        return len(self.basis) >= self.basis.shape[1] - 1

    def near(self, tolerance: float) -> float:
        """The distance below which an input counts as in it: `tolerance` times the blur, and all of that where it is
        small: true inputs are up to one blur away, and others are then far beyond."""
        return min(FARTHEST, max(self.rounding, tolerance * self.blur, min(self.blur, SHARP)))

    def distance(self, inputs: Tensor) -> Tensor:
        """‖a − P a‖ / ‖a‖ of inputs (…, d), float64, (…)."""
        a = inputs.double()
        own = a.square().sum(-1)
        rest = (a - (a @ self.basis.mT) @ self.basis).square().sum(-1)
        return (rest / own.clamp(min=1e-300)).sqrt()


def span(layer: Layer, observed: Observation) -> Span:
    """The span of a layer's gradient: its right singular vectors whose values lie above what rounding, and noise of the
    observation's σ, make: ε s₁, and σ (√rows + √d), the largest singular value of noise alone."""
    parts, sigma = observed.client.split(observed.g), observed.sigma or 0.0
    stacked = torch.cat([(parts[n].mT if t else parts[n]).double() for n, t in layer.weights])
    _, s, vh = torch.linalg.svd(stacked, full_matrices=False)
    edge = sigma * (math.sqrt(stacked.shape[0]) + math.sqrt(stacked.shape[1]))
    least = max(ROUNDING * torch.finfo(observed.g.dtype).eps * math.sqrt(len(s)) * float(s[0]), 1.05 * edge)
    rank = int((s > least).sum())
    precision = 1e3 * torch.finfo(observed.client.dtype).eps
    return Span(vh[:rank], least / float(s[max(0, rank - 1)]), precision)


@torch.no_grad()
def inputs(client: Client, layer: Layer, ids: Tensor, *, last: bool = False) -> Tensor:
    """What a layer takes of sentences ids (N, length), (N, length, d); of their last token alone, (N, d), for `last`:
    a search looks at thousands of sentences, whose others would fill the memory."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught.append(args[0][:, -1].clone() if last else args[0])
        raise _Enough

    width = int(layer.module.weight.numel() ** 0.5)  # type: ignore[operator]
    handle = layer.module.register_forward_pre_hook(catch)
    try:
        for part in ids.split(max(1, ROWS // (ids.shape[1] * width))):
            try:
                client.network(part.to(client.dtype))
            except _Enough:
                continue
    finally:
        handle.remove()
    return torch.cat(caught)


@torch.no_grad()
def by_position(client: Client, layer: Layer, of: Span) -> Tensor:
    """How far every token at every position is from the span of what the first layer took: (V, length), float64."""
    assert client.vocabulary is not None
    length, size = client.input_shape[0], len(client.vocabulary)
    tokens = torch.arange(size, device=client.device)
    parts = [of.distance(inputs(client, layer, own[:, None].expand(-1, length))) for own in tokens.split(256)]
    return torch.cat(parts)
