"""The client: the victim's network, its loss, and the update it computes on a batch.

    u(x, y) = ∇θ (1/B) Σ_b ℓ(f_θ(x_b), y_b),   ℓ and its mean: `pplleak.client.loss`   (FedSGD, one gradient)
    u(x, y) = θ_after − θ_before                                               (FedAvg, `LocalTraining`)

A network that draws noise ε for every example (`pplleak.federation.defences.precode`, `dropout`) has a `noise_shape`,
is called as network(x, ε) and returns logits and what it adds to ℓ; u(x, y, ε) is then a function of the noise, too.

`Client.update` returns a gradient as a lazy `pplleak.client.update.Update`: `pplleak.client.taps` collects each
layer's input a and
output gradient δ, and never forms ∇θ. A network that has no such form throughout, one that mixes the examples of a
batch, and local training fall back to `pplleak.client.training`; the constructor compares the two once, so that a
network the closed form does not fit is never attacked with a wrong gradient.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pplleak import programs
from pplleak.client import kernels, sizes, taps, targets, training
from pplleak.client.factors import Entries, Factor
from pplleak.client.loss import DEFAULT, Output, check, get, total
from pplleak.client.loss import probe as probe_loss
from pplleak.client.networks import Normalise
from pplleak.client.orders import Orders
from pplleak.client.smoothness import probe
from pplleak.client.targets import every_binary
from pplleak.client.training import LocalTraining
from pplleak.client.update import DenseUpdate, LazyUpdate, Update
from pplleak.errors import BadInput
from pplleak.priors.labels import Labels


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
    lazy         True where every parameter has a closed form, False where the update is materialised
    mixes_batch  True where an example's output depends on the rest of its batch (BatchNorm in train mode)
    kinks        the operations with a jump in their derivative (`relu`, `max_pool2d`, …); () for a smooth network
    noise_shape  of the noise ε that the network draws for one example, or None: it draws none

    Raises:
        BadInput: the network does not take `input_shape`, does not give `num_classes` logits, holds NaN, has no
            trainable parameters, is random (dropout in train mode), or draws noise and trains locally; or its code
            fails, or cannot be differentiated twice.
    """

    network: nn.Module
    input_shape: tuple[int, ...]
    num_classes: int = 0
    local: LocalTraining | None = None
    loss: str = DEFAULT
    withheld: tuple[str, ...] = ()
    targets: Tensor | None = None
    layers: dict[str, torch.Size] = field(default_factory=dict)
    lazy: bool = False
    mixes_batch: bool = False
    kinks: tuple[str, ...] = ()
    noise_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.layers:  # a copy by `replace` has been checked
            return
        with programs.blamed(f"the network fails on two images of shape {tuple(self.input_shape)}"):
            for name, value in _checked(self).items():
                object.__setattr__(self, name, value)
            object.__setattr__(self, "lazy", _closed_form(self))
            if not self.lazy:
                _require_slopes(self)

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
        return next(iter(self.parameters.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

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
        lead = torch.broadcast_shapes(x.shape[: -event - 1], y.shape[: y.dim() - 1 - len(own)])
        if self.noise_shape is not None:
            inner = len(self.noise_shape)
            noise = x.new_zeros(size, *self.noise_shape) if noise is None else noise.to(self.dtype)
            lead = torch.broadcast_shapes(lead, noise.shape[: -inner - 1])
            noise = noise.expand(*lead, *noise.shape[-inner - 1 :])
        elif noise is not None:
            raise BadInput("the client's network draws no noise: there is none to give it")
        if order is not None:
            if self.order_prior(size) is None:
                raise BadInput("the client does not shuffle its examples: there is no order to give it")
            lead = torch.broadcast_shapes(lead, order.shape[:-2])
            order = order.expand(*lead, *order.shape[-2:])
        if rate is not None:
            lead = torch.broadcast_shapes(lead, rate.shape)
            order = order if order is None else order.expand(*lead, *order.shape[-2:])
            rate = rate.to(self.dtype).expand(lead)
        x = x.expand(*lead, *x.shape[-event - 1 :])
        y = y.expand(*lead, size, *own)
        return self._factored(x, y, noise) if self.lazy else self.materialised(x, y, noise, order, rate)

    def _factored(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> LazyUpdate:
        each = get(self.loss).shares(y)
        lead, batch, slices = each.shape[:-1], each.shape[-1], self.slices
        shares, (flat_x, flat_y) = each.flatten(), (t.flatten(0, len(lead)) for t in (x, y))

        def loss(output: Output) -> Tensor:  # each chain's own, all in one sum
            return total(self.loss, output, flat_x, flat_y, shares)

        given = [flat_x] if noise is None else [flat_x, noise.flatten(0, len(lead))]

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
        each, own = get(self.loss).shares(y), _own_shape(y)
        lead, batch = each.shape[:-1], each.shape[-1]
        rows = 1 if self.mixes_batch or self.local else batch
        xs = x.reshape(-1, batch // rows, *self.input_shape)
        ys = y.reshape(-1, batch // rows, *own)
        if self.noise_shape is not None:
            noise = x.new_zeros(*each.shape, *self.noise_shape) if noise is None else noise
            noise = noise.reshape(-1, batch // rows, *self.noise_shape)
        if self.local:
            examples = training.movement(
                self.network, self.trained, xs, ys, self.local, loss=self.loss, shared=tuple(self.layers),
                order=None if order is None else order.reshape(-1, *order.shape[-2:]),
                rate=None if rate is None else rate.reshape(-1),
            )  # fmt: skip
        else:
            shares = each.reshape(ys.shape[:2])
            examples = training.gradients(self.network, self.parameters, xs, ys, shares, noise, loss=self.loss)
        return DenseUpdate(examples.reshape(*lead, rows, -1))

    def split(self, g: Tensor) -> dict[str, Tensor]:
        """A flat update (*chains, update_size) as named tensors (*chains, *shape)."""
        parts = g.split([s.numel() for s in self.layers.values()], -1)
        return {n: p.reshape(*g.shape[:-1], *s) for (n, s), p in zip(self.layers.items(), parts, strict=True)}


def extended[Kind: Client](kind: type[Kind], client: Client, **more: Any) -> Kind:
    """A client of a subclass, with all that was found of another one, and what the subclass adds."""
    return kind(**{f.name: getattr(client, f.name) for f in fields(Client)}, **more)


def _checked(client: Client) -> dict[str, Any]:
    """The fields of a client that its network decides, and the frozen copy of the network itself."""
    network, local = client.network, client.local
    get(client.loss)
    noise_shape = getattr(network, "noise_shape", None)
    if noise_shape is not None and local is not None:
        raise BadInput("a network that draws noise (precode, dropout) and local training: each step draws anew, "
                       "which is not modelled; share one gradient")  # fmt: skip
    sizes.require_real(network)
    network = copy.deepcopy(network)
    layers = {name: p.shape for name, p in network.named_parameters() if p.requires_grad}
    if not layers:
        raise BadInput("the network has no trainable parameters, so it shares no gradient")
    if strange := [n for n in client.withheld if n not in layers]:
        raise BadInput(f"'{strange[0]}' is withheld, and no trainable parameter of the network, which has "
                       f"{', '.join(list(layers)[:5])}, …")  # fmt: skip
    layers = {n: s for n, s in layers.items() if n not in client.withheld}
    if not layers:
        raise BadInput("all of the network's parameters are withheld, so it shares no gradient")
    for name, p in network.named_parameters():
        if not p.isfinite().all():
            raise BadInput(f"the network's parameter '{name}' holds NaN or infinity: load sound weights")
    network.requires_grad_(False)
    for module in network.modules():
        if getattr(module, "inplace", False):
            # an in-place activation would overwrite the outputs that the taps hold
            setattr(module, "inplace", False)  # noqa: B010 (mypy knows no such attribute)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            # train mode uses the batch's statistics; vmap cannot update the running ones in place
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False

    x = _probe(next(network.parameters()), client.input_shape)
    generator_state = torch.get_rng_state()
    with kernels.plain():  # a fused kernel would hide the kinks inside it
        kinks, logits = probe(network, x)
        drew = not torch.equal(generator_state, torch.get_rng_state())  # a rare dropout changes no output, but draws
        kind = get(client.loss).targets
        output: Any = logits
        if kind == "input" and isinstance(logits, Tensor):  # an image is an output, too
            logits = logits.flatten(1)
        classes = client.num_classes or (logits.shape[-1] if isinstance(logits, Tensor) and logits.dim() == 2 else "K")
        if not isinstance(logits, Tensor) or logits.shape != (2, classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise BadInput(f"the network must return logits (batch, {classes}), but for a batch of 2 it returns {got}")
        if not logits.is_floating_point():
            raise BadInput(f"the network returns {logits.dtype}: logits are floating-point numbers")
        if not logits.isfinite().all():
            raise BadInput("the network returns NaN or infinity: its weights are too large for its precision")
        with torch.enable_grad():
            if not network(x.detach().clone().requires_grad_()).requires_grad:
                raise BadInput("the network's logits have no slope in the images, and its gradient says nothing of "
                               "them: does it compute by .detach(), .item() or numpy?")  # fmt: skip
        check(client.loss, int(logits.shape[-1]), math.prod(client.input_shape))
        if kind == "input" and any(isinstance(hook, Normalise) for hook in network._forward_pre_hooks.values()):
            raise BadInput("inputs that are normalised outside the network are other ones than the loss compares with "
                           "(targets=input): leave one of them out")  # fmt: skip
        probe_loss(client.loss, output, x if kind == "input" else _probe_targets(client.loss, x, int(logits.shape[-1])))
        if drew or not torch.equal(output, network(x)):
            raise BadInput("the network is random (dropout in train mode?): call .eval() before sharing a gradient")
        try:
            mixes = not torch.allclose(network(x[:1]), output[:1], rtol=1e-3, atol=1e-4)
        except (RuntimeError, ValueError):  # batch statistics of one example do not exist
            mixes = True
    return {
        "network": network, "input_shape": tuple(client.input_shape), "num_classes": classes, "layers": layers,
        "mixes_batch": mixes, "kinks": kinks, "noise_shape": noise_shape,
    }  # fmt: skip


def _require_slopes(client: Client) -> None:
    """Raise for a network whose materialised update has no slope in the images: what an attack follows."""
    x = _probe(next(client.network.parameters()), client.input_shape)[None].requires_grad_()
    y = _probe_targets(client.loss, x[0], client.num_classes)[None]
    with torch.enable_grad():
        u = replace(client, local=None).materialised(x, y).materialise()  # which local steps are made of
        if not u.requires_grad:
            raise BadInput("the network's update does not depend on the images: does it compute by numpy, .item() or "
                           ".detach()?")  # fmt: skip
        torch.autograd.grad(u.sum(), x, allow_unused=True)


def _probe(like: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """Two examples that the checks look at."""
    return torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(like)


def _probe_targets(loss: str, like: Tensor, outputs: int) -> Tensor:
    """What the two examples of the checks are mapped onto: labels, or vectors of any kind."""
    if get(loss).targets not in targets.VECTORS:
        return torch.arange(2, device=like.device) % outputs
    return torch.eye(max(outputs, 2), device=like.device, dtype=like.dtype)[:2, :outputs]


def _own_shape(y: Tensor) -> torch.Size:
    """Of one example's target: () of a label, (K,) of a vector."""
    return y.shape[-1:] if y.is_floating_point() else torch.Size()


def _closed_form(client: Client) -> bool:
    """True where the taps give the very gradient of every example that `materialised` gives, on a probe batch."""
    if client.mixes_batch or client.local:
        return False
    x = _probe(next(client.network.parameters()), client.input_shape)
    y = _probe_targets(client.loss, x, client.num_classes)
    try:
        noise = None
        if client.noise_shape is not None:
            noise = torch.linspace(-1, 1, 2 * math.prod(client.noise_shape), dtype=x.dtype, device=x.device)
            noise = noise.reshape(2, 1, *client.noise_shape)
        lazy = client._factored(x[:, None], y[:, None], noise)
        filled = [where for factor in lazy.factors for where, _ in factor.entries()]
        if sorted(filled, key=lambda s: s.start) != list(client.slices.values()):
            return False  # a parameter without a tap, or with two: there would be cross terms between its factors
        factored, reference = lazy.materialise(), client.materialised(x[:, None], y[:, None], noise).materialise()
        return torch.allclose(factored, reference, rtol=1e-3, atol=1e-5 * float(reference.abs().max()))
    except (RuntimeError, ValueError, IndexError):  # shapes that are not (examples, …) throughout
        return False


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
