"""Networks with kinks, taken apart for a sampler: which kinks it meets one by one, and which it smooths over.

A rectifier's derivative jumps where its input h changes sign, and with it jumps the gradient that the client shares.
How much depends on what stands before it. A unit of a dense layer carries a whole row of the weight's gradient: its
jump in log p(g | x) may be tens of nats. A unit of a convolution carries one position of a map: its jump is a tenth
of a nat, but there are tens of thousands of them. So

    wall    a rectifier after a Linear layer: its pattern is held fixed, and a sampler meets its kinks one by one
    gate    any other rectifier, and max pooling: its value stays exact, its derivative is smoothed,
                relu'(h) → sigmoid(βh)        argmax of a window → softmax(β window)

With the walls' pattern fixed, the gated network's log-density is continuous, its derivative by the same softened rules
is a useful force (not exactly its slope), and it tends to the exact one as β → ∞. Values are those
of the true network at every β: softplus would shift them by log 2/β a unit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplleak.client import Client, extended
from pplleak.client.entries import Entries
from pplleak.client.smoothness import probe
from pplleak.client.update import DenseUpdate, LazyUpdate, Update
from pplleak.errors import BadInput


class _Rectify(torch.autograd.Function):
    """max(h, leak h) whose derivative is leak + (1 − leak) sigmoid(βh)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, leak: float, beta: float) -> Tensor:
        ctx.save_for_backward(h)
        ctx.leak, ctx.beta = leak, beta
        return F.leaky_relu(h, leak)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (h,) = ctx.saved_tensors
        return grads[0] * (ctx.leak + (1 - ctx.leak) * torch.sigmoid(ctx.beta * h)), None, None


class _Largest(torch.autograd.Function):
    """The maximum over the last dimension, whose derivative is softmax(β ·)."""

    @staticmethod
    def forward(ctx: Any, windows: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(windows)
        ctx.beta = beta
        return windows.amax(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (windows,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * torch.softmax(ctx.beta * windows, -1), None


class SoftRectifier(nn.Module):
    def __init__(self, leak: float, beta: float) -> None:
        super().__init__()
        self.leak, self.beta = leak, beta

    def forward(self, h: Tensor) -> Tensor:
        return _Rectify.apply(h, self.leak, self.beta)


class SoftMaxPool(nn.Module):
    """`pool` with a softened derivative."""

    def __init__(self, pool: nn.MaxPool2d, beta: float) -> None:
        super().__init__()
        self.pool, self.beta = pool, beta

    def forward(self, x: Tensor) -> Tensor:
        p = self.pool
        vertical, horizontal = nn.modules.utils._pair(p.padding)
        padded = F.pad(x, (horizontal, horizontal, vertical, vertical), value=-1e9)  # never the largest of a window
        windows = F.unfold(padded, p.kernel_size, stride=p.stride)  # (rows, channels · window, positions)
        largest = _Largest.apply(windows.unflatten(1, (x.shape[1], -1)).mT, self.beta)
        height = (padded.shape[-2] - nn.modules.utils._pair(p.kernel_size)[0]) // nn.modules.utils._pair(p.stride)[
            0
        ] + 1
        return largest.unflatten(-1, (height, -1))


class Wall(nn.Module):
    """A rectifier whose pattern is held: h -> h where `pattern` (rows, units), leak h elsewhere."""

    def __init__(self, leak: float, width: int) -> None:
        super().__init__()
        self.leak, self.width = leak, width
        self.pattern = torch.ones(1, width, dtype=torch.bool)

    def forward(self, h: Tensor) -> Tensor:
        slope = self.leak + (1 - self.leak) * self.pattern.to(h)
        return (h.unflatten(0, (-1, len(slope))) * slope).flatten(0, 1)  # unknown labels repeat the rows


@dataclass(frozen=True, eq=False)
class Gated:
    """A client whose walls are held and whose gates are softened; taps: its walls' names, in forward order.

    network: the true one, laid out for forward passes. tail: the modules from the layer before the first wall on, in
    forward order; () where these are all or are no such thing. late: the same gated client, of whose update only
    their layers are computed, which a switch changes most; None where there is no tail.
    """

    client: Client
    taps: tuple[str, ...]
    network: nn.Module
    tail: tuple[str, ...]
    late: Late | None
    beta: float

    @property
    def walls(self) -> list[tuple[Wall, ...]]:
        """Each wall, in every network that holds one."""
        networks = [c.network for c in (self.client, self.late) if c is not None]
        return [tuple(cast(Wall, network.get_submodule(tap)) for network in networks) for tap in self.taps]

    def hold(self, pattern: Tensor) -> None:
        """Hold the walls at `pattern` (chains, units), until the next call: what `preactivations` > 0 gives."""
        every = self.walls
        widths = [wall.width for wall, *_ in every]
        batch = pattern.shape[1] // max(1, sum(widths))
        for walls, part in zip(every, pattern.split([batch * width for width in widths], 1), strict=True):
            for wall in walls:
                wall.pattern = part.reshape(-1, wall.width)

    def preactivations(self, x: Tensor) -> Tensor:
        """The inputs of the walls in the true network, side by side: x (chains, batch, …) -> (chains, units)."""
        return _beside(self._inputs(x, self.taps), x)

    def with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`preactivations`, and the input of the tail, (chains, batch, features)."""
        features, *seen = self._inputs(x, (self.tail[0], *self.taps))
        return _beside(seen, x), features.unflatten(0, x.shape[:2])

    def _inputs(self, x: Tensor, names: tuple[str, ...]) -> list[Tensor]:
        """What the true network gives to the modules of these names, in forward order."""
        seen: list[Tensor] = []
        handles = [
            self.network.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
            for name in names
        ]
        try:
            self.network(x.flatten(0, 1))
        finally:
            for handle in handles:
                handle.remove()
        return seen


def _beside(seen: list[Tensor], x: Tensor) -> Tensor:
    return torch.cat([h.reshape(len(x), -1) for h in seen] or [x.new_zeros(len(x), 0)], 1)


def gated(client: Client, beta: float) -> Gated:
    """Take `client` apart; `beta` is the gates' sharpness, in units of 1/h.

    Raises:
        BadInput: it has kinks other than those of nn.ReLU, nn.LeakyReLU and nn.MaxPool2d modules.
    """
    network, smooth = copy.deepcopy(client.network), copy.deepcopy(client.network)
    calls = _calls(client)
    names = [name for name, _, _ in calls]
    taps: list[str] = []
    for k, (name, module, h) in enumerate(calls):
        if isinstance(module, (nn.ReLU, nn.LeakyReLU)):
            leak = float(getattr(module, "negative_slope", 0.0))
            wall = k > 0 and isinstance(calls[k - 1][1], nn.Linear) and h.dim() == 2 and names.count(name) == 1
            if wall:
                taps.append(name)
            network.set_submodule(name, Wall(leak, h.shape[1]) if wall else SoftRectifier(leak, beta))
            smooth.set_submodule(name, nn.Softplus())
        elif isinstance(module, nn.MaxPool2d) and _plain(module):
            network.set_submodule(name, SoftMaxPool(module, beta))
            smooth.set_submodule(name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
    left, _ = probe(smooth, torch.zeros(2, *client.input_shape, dtype=client.dtype, device=client.device))
    if left:
        raise BadInput(
            "inference billiard knows the kinks of nn.ReLU, nn.LeakyReLU and nn.MaxPool2d modules, but this network "
            f"has others ({', '.join(left)}): use a smooth activation"
        )

    def swift(network: nn.Module) -> nn.Module:  # forward passes are faster so, double backward ones slower
        return copy.deepcopy(network).to(memory_format=torch.channels_last)

    tail = _tail(client, names, taps)
    late = tuple(name for name in client.parameters if name.rpartition(".")[0] in tail)
    behind = extended(Late, replace(client, network=swift(network)), late=late) if late else None
    soft = replace(client, network=network)
    return Gated(soft, tuple(taps), swift(client.network), tail, behind, beta)


def _tail(client: Client, names: list[str], taps: list[str]) -> tuple[str, ...]:
    """The modules that are called from the layer before the first wall on; () where nothing is before them, or one of
    them is called there, too."""
    if not taps or not client.lazy:
        return ()
    first = names.index(taps[0]) - 1
    before = {name for name in client.parameters if name.rpartition(".")[0] in names[:first]}
    return tuple(names[first:]) if before and set(names[first:]).isdisjoint(names[:first]) else ()


def _plain(pool: nn.MaxPool2d) -> bool:
    return not pool.ceil_mode and not pool.return_indices and pool.dilation in (1, (1, 1))


def _calls(client: Client) -> list[tuple[str, nn.Module, Tensor]]:
    """(name, module, input) of every leaf module, in the order in which a forward pass calls them."""
    calls: list[tuple[str, nn.Module, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: calls.append((name, m, args[0])))
        for name, module in client.network.named_modules()
        if not list(module.children())
    ]
    try:
        with torch.no_grad():
            client.network(torch.zeros(1, *client.input_shape, dtype=client.dtype, device=client.device))
    finally:
        for handle in handles:
            handle.remove()
    return calls


class Idle(Client):
    """The same client, which shares zeros: a model that is run with it gives its x without the cost of a gradient."""

    @staticmethod
    def of(client: Client) -> Idle:
        return Idle(**vars(client))

    def update(self, x: Tensor, y: Tensor, *_: Tensor | None, **__: Tensor | None) -> Update:
        lead = np.broadcast_shapes(x.shape[: -len(self.input_shape) - 1], y.shape[:-1])
        return DenseUpdate(x.new_zeros(()).expand(*lead, 1, self.update_size))


@dataclass(frozen=True, eq=False)
class Late(Client):
    """The same client, of whose update only the layers in `late` are computed; the others share zeros."""

    late: tuple[str, ...] = ()

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in super().parameters.items() if name in self.late}

    def update(self, x: Tensor, y: Tensor, *others: Tensor | None, **named: Tensor | None) -> Update:
        found = super().update(x, y, *others, **named)
        assert isinstance(found, LazyUpdate)  # `_late` names no layers of a client that materialises
        left = [where for name, where in self.slices.items() if name not in self.late]
        zeros = [x.new_zeros(()).expand(*found.shape, 1, where.stop - where.start) for where in left]
        entries = [Entries(zero, (where,)) for zero, where in zip(zeros, left, strict=True)]
        return LazyUpdate((*found.factors, *entries), found.size)
