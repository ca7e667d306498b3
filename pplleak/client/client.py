"""The client: the victim's network, its loss, and the update it computes on a batch.

    u(x, y) = ∇θ (1/B) Σ_b ℓ(f_θ(x_b), y_b),   ℓ and its mean: `pplleak.client.loss`   (FedSGD, one gradient)
    u(x, y) = θ_after − θ_before                                               (FedAvg, `LocalTraining`)

A network that draws noise ε for every example (`pplleak.federation.defences.precode`, or dropout in train mode) has a
`noise_shape`, is called as network(x, ε) and returns logits and what it adds to ℓ; u(x, y, ε) is then a function of the
noise, too.

`Client.update` returns a gradient as a lazy `pplleak.client.update.Update`: `pplleak.client.taps` collects each
layer's input a and
output gradient δ, and never forms ∇θ. A network that has no such form throughout, one that mixes the examples of a
batch, and local training fall back to `pplleak.client.training`; the constructor compares the two once, so that a
network the closed form does not fit is never attacked with a wrong gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from pplleak import programs
from pplleak.client import checks, taps, training
from pplleak.client.factors import Entries, Factor
from pplleak.client.loss import DEFAULT, Output, get, total
from pplleak.client.training import LocalTraining
from pplleak.client.update import DenseUpdate, LazyUpdate, Update
from pplleak.errors import BadInput
from pplleak.priors.labels import Labels

Path = Literal["lazy", "vmap", "loop"]


@dataclass(frozen=True, eq=False)
class Client:
    """θ, ℓ and what the client does locally: ``Client(my_module, input_shape=(1, 28, 28))``.

    The network is copied, frozen and checked once; what the check finds are the fields after `loss`, which are not
    given by hand.

    network      f_θ: (batch, *input_shape) -> logits (batch, num_classes); its parameters are frozen copies
    input_shape  of one example
    num_classes  of the logits; 0: as many as the network returns
    local        what the client trains on its own before it shares, or None: it shares its gradient
    loss         ℓ, a name of `pplleak.client.loss`, with settings: `cross_entropy:label_smoothing=0.1`
    layers       the trainable parameters in the order in which the flat update holds them: name -> shape
    path         how the update is computed: `lazy`, in closed form; `vmap`, materialised for all rows at once; `loop`,
                 one row after the other, where an operation has no rule for vmap
    mixes_batch  True where an example's output depends on the rest of its batch (BatchNorm in train mode)
    kinks        the operations with a jump in their derivative (`relu`, `max_pool2d`, …); () for a smooth network
    noise_shape  of the noise ε that the network draws for one example, or None: it draws none

    Raises:
        BadInput: the network does not take `input_shape`, does not give `num_classes` logits, holds NaN, has no
            trainable parameters, is random in a way that is not modelled (`pplleak.client.masks` models dropout), or
            draws noise and trains locally; or its code fails, or cannot be differentiated twice.
    """

    network: nn.Module
    input_shape: tuple[int, ...]
    num_classes: int = 0
    local: LocalTraining | None = None
    loss: str = DEFAULT
    layers: dict[str, torch.Size] = field(default_factory=dict)
    path: Path = "vmap"
    mixes_batch: bool = False
    kinks: tuple[str, ...] = ()
    noise_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.layers:  # a copy by `replace` has been checked
            return
        with programs.blamed(f"the network fails on two images of shape {tuple(self.input_shape)}"):
            for name, value in checks.found(self).items():
                object.__setattr__(self, name, value)
            object.__setattr__(self, "path", checks.path(self))
            checks.require_slopes(self)

    @property
    def lazy(self) -> bool:
        """True where every parameter has a closed form, False where the update is materialised."""
        return self.path == "lazy"

    @property
    def update_size(self) -> int:
        """Entries of the flat update."""
        return sum(shape.numel() for shape in self.layers.values())

    @property
    def slices(self) -> dict[str, slice]:
        """Where the flat update holds each parameter."""
        ends = list(itertools.accumulate((s.numel() for s in self.layers.values()), initial=0))
        return {n: slice(a, b) for n, (a, b) in zip(self.layers, itertools.pairwise(ends), strict=True)}

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.network.named_parameters() if name in self.layers}

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.parameters.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def label_prior(self, batch_size: int = 1) -> Labels:
        """What the adversary knows of the labels before: uniform over the classes, shape (batch_size,)."""
        return Labels(torch.zeros(self.num_classes, dtype=self.dtype, device=self.device), batch_size)

    def noise_prior(self, batch_size: int = 1) -> TorchDistribution:
        """ε ~ Normal(0, I) of one batch, event shape (batch_size, *noise_shape); of a network that draws some."""
        if self.noise_shape is None:
            raise BadInput("the client's network draws no noise: there is none to infer")
        one = torch.ones(batch_size, *self.noise_shape, dtype=self.dtype, device=self.device)
        return Normal(0 * one, one).to_event(one.dim())

    def noise(self, batch_size: int = 1) -> Tensor | None:
        """ε ~ Normal(0, I) of one batch (batch_size, *noise_shape), by torch's generator; or None."""
        if self.noise_shape is None:
            return None
        return torch.randn(batch_size, *self.noise_shape, dtype=self.dtype, device=self.device)

    def update(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Update:
        """u(x, y), lazy where it can be.

        Args:
            x: (*chains, batch, *input_shape). Differentiable.
            y: (*chains, batch), class indices. Leading dimensions broadcast against those of x.
            noise: ε, (*chains, batch, *noise_shape), of a network that draws some. Differentiable. None is its mean, 0:
                what an adversary computes with who does not know that there is noise.
        """
        x = x.to(self.dtype)
        event = len(self.input_shape)
        lead = torch.broadcast_shapes(x.shape[: -event - 1], y.shape[:-1])
        if self.noise_shape is not None:
            inner = len(self.noise_shape)
            noise = x.new_zeros(y.shape[-1], *self.noise_shape) if noise is None else noise.to(self.dtype)
            lead = torch.broadcast_shapes(lead, noise.shape[: -inner - 1])
            noise = noise.expand(*lead, *noise.shape[-inner - 1 :])
        elif noise is not None:
            raise BadInput("the client's network draws no noise: there is none to give it")
        x = x.expand(*lead, *x.shape[-event - 1 :])
        y = y.expand(*lead, y.shape[-1])
        return self._factored(x, y, noise) if self.lazy else self.materialised(x, y, noise)

    def _factored(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> LazyUpdate:
        lead, batch = y.shape[:-1], y.shape[-1]
        slices = self.slices

        shares = get(self.loss).shares(y).flatten()

        def loss(output: Output) -> Tensor:  # each chain's own, all in one sum
            return total(self.loss, output, y.flatten(), shares)

        given = [t.flatten(0, len(lead)) for t in (x, noise) if t is not None]

        def unflat(t: Tensor) -> Tensor:
            return t.reshape(*lead, batch, *t.shape[1:])

        names = {id(p): name for name, p in self.parameters.items()}
        factors: list[Factor | Entries] = []
        for part in taps.read(self.network, given, loss, names):
            if isinstance(part, taps.Copies):
                factors.append(Entries(unflat(part.gradients), slices[part.name]))
            else:
                weight, bias = (None if n is None else slices[n] for n in (part.weight, part.bias))
                factors.append(Factor(unflat(part.inputs), unflat(part.deltas), weight, bias))
        return LazyUpdate(tuple(factors), self.update_size)

    def materialised(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> DenseUpdate:
        """u(x, y) entry by entry: the general fallback, and the reference the lazy form is tested against.

        Args as for `update`, with equal leading dimensions. A batch that its network mixes, or that several local
        steps mix, counts as one example.
        """
        lead, batch = y.shape[:-1], y.shape[-1]
        rows = 1 if self.mixes_batch or self.local else batch
        xs = x.reshape(-1, batch // rows, *self.input_shape)
        ys = y.reshape(-1, batch // rows)
        if self.noise_shape is not None:
            noise = x.new_zeros(*y.shape, *self.noise_shape) if noise is None else noise
            noise = noise.reshape(-1, batch // rows, *self.noise_shape)
        loss, looped = self.loss, self.path == "loop"
        with self._one_example(batch):
            if self.local:
                examples = training.movement(
                    self.network, self.parameters, xs, ys, self.local, loss=loss, looped=looped
                )
            else:
                shares = get(self.loss).shares(y).reshape(ys.shape)
                examples = training.gradients(
                    self.network, self.parameters, xs, ys, shares, noise, loss=loss, looped=looped
                )
        return DenseUpdate(examples.reshape(*lead, rows, -1))

    @contextmanager
    def _one_example(self, batch: int) -> Iterator[None]:
        """What torch says of the statistics of one example, in one line."""
        try:
            yield
        except ValueError as error:
            if self.mixes_batch and batch == 1 and "more than 1 value per channel" in str(error):
                raise BadInput("BatchNorm in train mode has no statistics of one example: give the client's own batch "
                               "(a batch size of 2 or more), or put the network in eval mode") from error  # fmt: skip
            raise

    def split(self, g: Tensor) -> dict[str, Tensor]:
        """A flat update (*chains, update_size) as named tensors (*chains, *shape)."""
        parts = g.split([s.numel() for s in self.layers.values()], -1)
        return {n: p.reshape(*g.shape[:-1], *s) for (n, s), p in zip(self.layers.items(), parts, strict=True)}


def extended[Kind: Client](kind: type[Kind], client: Client, **more: Any) -> Kind:
    """A client of a subclass, with all that was found of another one, and what the subclass adds."""
    return kind(**{f.name: getattr(client, f.name) for f in fields(Client)}, **more)


def distrust(client: Client, method: str) -> tuple[str, ...]:
    """Why a method that follows slopes is not to be trusted on this client; () where the network is smooth."""
    if not client.kinks:
        return ()
    return (
        f"the network has kinks ({', '.join(client.kinks)}): its posterior jumps, {method} cannot cross the jumps, and "
        "this result is not to be trusted; attack a smooth activation, or cross them by the inference refractive "
        "(perceptrons) or billiard (any network, slow), or take a labelled approximation, a surrogate of sharpness 100",
    )


def seeded(build_network: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Run a network's constructor with torch's generator seeded, and leave the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network()
