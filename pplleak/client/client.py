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

import numpy as np
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from pplleak import blame
from pplleak.client import checks, taps, targets, training
from pplleak.client.entries import Entries, Lookup
from pplleak.client.factors import Factor
from pplleak.client.loss import DEFAULT, Output, get, total
from pplleak.client.orders import Orders
from pplleak.client.targets import every_binary
from pplleak.client.training import LocalTraining
from pplleak.client.update import DenseUpdate, LazyUpdate, Update
from pplleak.data.columns import Columns
from pplleak.data.vocabulary import Vocabulary
from pplleak.errors import BadInput
from pplleak.priors.labels import Labels

Path = Literal["lazy", "vmap", "loop"]


@dataclass(frozen=True, eq=False)
class Client:
    """θ, ℓ and what the client does locally: ``Client(my_module, input_shape=(1, 28, 28))``.

    The network is copied, frozen and checked once; what the check finds are the fields from `layers` on, which are not
    given by hand.

    network      f_θ: (batch, *input_shape) -> logits (batch, num_classes); its parameters are frozen copies
    input_shape  of one example
    num_classes  of the logits; 0: as many as the network returns
    local        what the client trains on its own before it shares, or None: it shares its gradient
    loss         ℓ, a name of `pplleak.client.loss`, with settings: `cross_entropy:label_smoothing=0.1`
    targets      (T, K), where the loss compares with vectors: the label y_b is the row of example b; None: there are
                 none, or nobody shared them (`pplleak.client.targets`)
    withheld     trainable parameters of which nothing is shared; local training moves them all the same
    layers       the shared parameters in the order in which the flat update holds them: name -> shape
    path         how the update is computed: `lazy`, in closed form; `vmap`, materialised for all rows at once; `loop`,
                 one row after the other, where an operation has no rule for vmap
    mixes_batch  True where an example's output depends on the rest of its batch (BatchNorm in train mode)
    kinks        the operations with a jump in their derivative (`relu`, `max_pool2d`, …); () for a smooth network
    noise_shape  of the noise ε that the network draws for one example, or None: it draws none
    columns      of the table whose records the client encodes as x (`pplleak.data.columns`); None: x is no record
    vocabulary   of the sentences whose token ids x are (`pplleak.data.vocabulary`); None: x is no sentence

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
    withheld: tuple[str, ...] = ()
    targets: Tensor | None = None
    columns: Columns | None = None
    vocabulary: Vocabulary | None = None
    layers: dict[str, torch.Size] = field(default_factory=dict)
    path: Path = "vmap"
    mixes_batch: bool = False
    kinks: tuple[str, ...] = ()
    noise_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.layers:  # a copy by `replace` has been checked
            return
        with blame.blamed(f"the network fails on two {self.things} of shape {tuple(self.input_shape)}"):
            for name, value in checks.found(self).items():
                object.__setattr__(self, name, value)
            object.__setattr__(self, "path", checks.path(self))
            if self.vocabulary is None:  # token ids have no slopes
                checks.require_slopes(self)

    @property
    def things(self) -> str:
        """What its examples are called."""
        return "images" if self.vocabulary is None else "sentences"

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
    def trained(self) -> dict[str, Tensor]:
        """The parameters that local training moves: those that are shared, and those that are withheld."""
        return {name: p for name, p in self.network.named_parameters() if name in (*self.layers, *self.withheld)}

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        return self._first.device

    @property
    def _first(self) -> Tensor:
        """Of the shared parameters, found without a walk through a deep network."""
        return next(p for name, p in self.network.named_parameters() if name in self.layers)

    def label_prior(self, batch_size: int = 1) -> Labels:
        """What the adversary knows of the labels before: uniform over the classes, or over the targets that there are,
        shape (batch_size,)."""
        return Labels(torch.zeros(self.labels, dtype=self.dtype, device=self.device), batch_size)

    @property
    def labels(self) -> int:
        """How many values a label has: classes, or rows of targets; 1 where there is nothing to choose."""
        kind = get(self.loss).targets
        return self.num_classes if kind == "classes" else 1 if self.table is None else len(self.table)

    @property
    def table(self) -> Tensor | None:
        """`targets`; of binary ones that nobody shared, all that there are."""
        if self.targets is None and get(self.loss).targets == "binary":
            return every_binary(self.num_classes).to(self.device, self.dtype)
        return self.targets

    def target_prior(self, batch_size: int = 1) -> TorchDistribution | None:
        """What the adversary knows before of vectors that nobody shared, event shape (batch_size, K), to be given to
        `update` instead of labels; None where the targets are labels, rows of a table or the inputs."""
        kind = get(self.loss).targets
        if kind not in targets.VECTORS or self.table is not None:
            return None
        return targets.prior(kind, self.num_classes, batch_size, next(iter(self.parameters.values())))

    def target(self, y: Tensor) -> Tensor:
        """Labels y (…, batch) as the loss compares with them: as they are, or vectors (…, batch, K), which stay so."""
        if y.is_floating_point():
            return y.to(self.dtype)
        if get(self.loss).targets not in targets.VECTORS:
            return y
        if self.table is None:
            raise BadInput(f"the targets of the loss {self.loss} were not shared: give them, or take a model that has "
                           "them as a latent (optimal)")  # fmt: skip
        return self.table.to(self.dtype)[y]

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

    def order_prior(self, batch_size: int = 1) -> Orders | None:
        """What the adversary knows of the order of the examples, to be given to `update`; None: it means nothing, or
        is known."""
        return Orders.of(self.local, batch_size) if self.local is not None and self.local.shuffle else None

    def order(self, batch_size: int = 1) -> Tensor | None:
        """One order (epochs, batch_size) of a client that shuffles, by torch's generator; None of any other."""
        prior = self.order_prior(batch_size)
        return None if prior is None else prior.sample().to(self.device)

    def update(
        self,
        x: Tensor,
        y: Tensor,
        noise: Tensor | None = None,
        order: Tensor | None = None,
        rate: Tensor | None = None,
    ) -> Update:
        """u(x, y), lazy where it can be.

        Args:
            x: (*chains, batch, *input_shape). Differentiable.
            y: (*chains, batch), class indices or rows of `targets`; or (*chains, batch, K), the vectors themselves.
                Leading dimensions broadcast against those of x.
            noise: ε, (*chains, batch, *noise_shape), of a network that draws some. Differentiable. None is its mean, 0:
                what an adversary computes with who does not know that there is noise.
            order: (*chains, epochs, batch), of a client that shuffles; None: as they are given, in every epoch.
            rate: (*chains,), what every learning rate of local training is multiplied by; None: 1. Differentiable.
        """
        x, y = x.to(self.dtype), self.target(y)
        event, own = len(self.input_shape), _own_shape(y)
        size = y.shape[y.dim() - 1 - len(own)]
        # numpy's, since torch's own imports a computer algebra system
        lead = np.broadcast_shapes(x.shape[: -event - 1], y.shape[: y.dim() - 1 - len(own)])
        if self.noise_shape is not None:
            inner = len(self.noise_shape)
            noise = x.new_zeros(size, *self.noise_shape) if noise is None else noise.to(self.dtype)
            lead = np.broadcast_shapes(lead, noise.shape[: -inner - 1])
            noise = noise.expand(*lead, *noise.shape[-inner - 1 :])
        elif noise is not None:
            raise BadInput("the client's network draws no noise: there is none to give it")
        if order is not None:
            if self.order_prior(size) is None:
                raise BadInput("the client does not shuffle its examples: there is no order to give it")
            lead = np.broadcast_shapes(lead, order.shape[:-2])
            order = order.expand(*lead, *order.shape[-2:])
        if rate is not None:
            lead = np.broadcast_shapes(lead, rate.shape)
            order = order if order is None else order.expand(*lead, *order.shape[-2:])
            rate = rate.to(self.dtype).expand(lead)
        x = x.expand(*lead, *x.shape[-event - 1 :])
        y = y.expand(*lead, size, *own)
        return self._factored(x, y, noise) if self.lazy else self.materialised(x, y, noise, order, rate)

    def _factored(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> LazyUpdate:
        each = get(self.loss).shares(y, x)
        lead, batch, slices = each.shape[:-1], each.shape[-1], self.slices
        shares, (flat_x, flat_y) = each.flatten(), (t.flatten(0, len(lead)) for t in (x, y))

        def loss(output: Output) -> Tensor:  # each chain's own, all in one sum
            return total(self.loss, output, flat_x, flat_y, shares)

        given = [flat_x] if noise is None else [flat_x, noise.flatten(0, len(lead))]

        def unflat(t: Tensor) -> Tensor:
            return t.reshape(*lead, batch, *t.shape[1:])

        names = {id(p): name for name, p in self.parameters.items()}
        factors: list[Factor | Lookup | Entries] = []
        copies: list[taps.Copies] = []
        for part in taps.read(self.network, given, loss, names):
            if isinstance(part, taps.Copies):
                copies.append(part)
            elif isinstance(part, taps.Looked):
                rows, where = self.layers[part.name][0], slices[part.name]
                factors.append(Lookup(unflat(part.ids), unflat(part.deltas), rows, where))
            else:
                weight, bias = (None if n is None else slices[n] for n in (part.weight, part.bias))
                factors.append(Factor(unflat(part.inputs), unflat(part.deltas), weight, bias, part.window))
        if copies:  # all in one: a deep network has a hundred of them
            examples = unflat(torch.cat([part.gradients for part in copies], 1))
            factors.append(Entries(examples, tuple(slices[part.name] for part in copies)))
        return LazyUpdate(tuple(factors), self.update_size)

    def materialised(
        self,
        x: Tensor,
        y: Tensor,
        noise: Tensor | None = None,
        order: Tensor | None = None,
        rate: Tensor | None = None,
    ) -> DenseUpdate:
        """u(x, y) entry by entry: the general fallback, and the reference the lazy form is tested against.

        Args as for `update`, with equal leading dimensions. A batch that its network mixes, or that several local
        steps mix, counts as one example.
        """
        y = self.target(y)
        each, own = get(self.loss).shares(y, x), _own_shape(y)
        lead, batch = each.shape[:-1], each.shape[-1]
        rows = 1 if self.mixes_batch or self.local else batch
        xs = x.reshape(-1, batch // rows, *self.input_shape)
        ys = y.reshape(-1, batch // rows, *own)
        if self.noise_shape is not None:
            noise = x.new_zeros(*each.shape, *self.noise_shape) if noise is None else noise
            noise = noise.reshape(-1, batch // rows, *self.noise_shape)
        loss, looped = self.loss, self.path == "loop"
        with self._one_example(batch):
            if self.local:
                examples = training.movement(
                    self.network, self.trained, xs, ys, self.local, loss=loss, looped=looped,
                    shared=tuple(self.layers),
                    order=None if order is None else order.reshape(-1, *order.shape[-2:]),
                    rate=None if rate is None else rate.reshape(-1),
                )  # fmt: skip
            else:
                shares = each.reshape(ys.shape[:2])
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


def _own_shape(y: Tensor) -> torch.Size:
    """Of one example's target: () of a label, (K,) of a vector."""
    return y.shape[-1:] if y.is_floating_point() else torch.Size()


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
