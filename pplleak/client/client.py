"""The client: the victim's network, its loss, and the update it computes on a batch.

    u(x, y) = ∇θ (1/B) Σ_b ℓ(f_θ(x_b), y_b),   ℓ and its mean: `pplleak.client.loss`   (FedSGD, one gradient)
    u(x, y) = θ_after − θ_before                                               (FedAvg, `LocalTraining`)

A network that draws noise ε for every example (`pplleak.federation.defences.precode`, or dropout in train mode) has a
`noise_shape`, is called as network(x, ε) and returns logits and what it adds to ℓ; u(x, y, ε) is then a function of the
noise, too.

`Client.update` returns a gradient as a lazy `pplleak.client.update.Update`, which never forms ∇θ
(`pplleak.client.closed_form`). A network that has no such form throughout, one that mixes the examples of a
batch, and local training fall back to `pplleak.client.training`; the constructor compares the two once, so that a
network the closed form does not fit is never attacked with a wrong gradient.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from pplleak import blame
from pplleak.client import checks, closed_form, targets, training
from pplleak.client.loss import DEFAULT, get
from pplleak.client.orders import Orders
from pplleak.client.targets import every_binary
from pplleak.client.training import LocalTraining
from pplleak.client.update import DenseUpdate, Update
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
        return closed_form.update(self, x, y, noise) if self.lazy else self.materialised(x, y, noise, order, rate)

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
        with checks.one_example(self, batch):
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
