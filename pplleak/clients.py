"""The client: the victim's network, its loss, and the update it computes on a batch.

    u(x, y) = ∇θ (1/B) Σ_b ℓ(f_θ(x_b), y_b),   ℓ the cross entropy            (FedSGD, one local step)

`Client.update` returns u as a lazy `pplleak.updates.Update`: hooks on the Linear and Conv2d layers collect each
layer's input a and output gradient δ, and never form ∇θ. A network with other parameters (or one that mixes the
examples of a batch) falls back to one gradient an example; `build` compares the two once, so that a network the
closed form does not fit is never attacked with a wrong gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pplleak.errors import BadInput
from pplleak.priors import Labels
from pplleak.smoothness import probe
from pplleak.updates import DenseUpdate, Factor, LazyUpdate, Update


@dataclass(frozen=True, eq=False)
class Client:
    """θ, ℓ and what the client does locally.

    network      f_θ: (batch, *input_shape) -> logits (batch, num_classes); its parameters are frozen copies
    layers       the trainable parameters in the order in which the flat update holds them: name -> shape
    lazy         True where every layer has a closed form, False where the update is materialised
    mixes_batch  True where an example's output depends on the rest of its batch (BatchNorm in train mode)
    kinks        the operations with a jump in their derivative (`relu`, `max_pool2d`, …); () for a smooth network
    """

    network: nn.Module
    input_shape: tuple[int, ...]
    num_classes: int
    layers: dict[str, torch.Size]
    lazy: bool
    mixes_batch: bool
    kinks: tuple[str, ...]

    @property
    def update_size(self) -> int:
        """Entries of the flat update."""
        return sum(shape.numel() for shape in self.layers.values())

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

    def update(self, x: Tensor, y: Tensor) -> Update:
        """u(x, y), lazy where it can be.

        Args:
            x: (*chains, batch, *input_shape). Differentiable.
            y: (*chains, batch), class indices. Leading dimensions broadcast against those of x.
        """
        x = x.to(self.dtype)
        event = len(self.input_shape)
        lead = torch.broadcast_shapes(x.shape[: -event - 1], y.shape[:-1])
        x = x.expand(*lead, *x.shape[-event - 1 :])
        y = y.expand(*lead, y.shape[-1])
        return self._factored(x, y) if self.lazy else self.materialised(x, y)

    def _factored(self, x: Tensor, y: Tensor) -> LazyUpdate:
        lead, batch = y.shape[:-1], y.shape[-1]
        calls, differentiable = _layer_calls(self.network, x.flatten(0, len(lead)), y.flatten(), self.layers)
        names = list(self.layers)
        starts = [0]
        for shape in self.layers.values():
            starts.append(starts[-1] + shape.numel())
        slices = {n: slice(a, b) for n, a, b in zip(names, starts, starts[1:], strict=False)}
        factors = []
        for name, module, inputs, deltas in calls:
            a, d = _rows(module, inputs, deltas / batch)  # the loss is the mean over the batch
            if not differentiable:
                a, d = a.detach(), d.detach()
            factors.append(
                Factor(
                    a.reshape(*lead, batch, *a.shape[1:]),
                    d.reshape(*lead, batch, *d.shape[1:]),
                    slices.get(f"{name}weight"),
                    slices.get(f"{name}bias"),
                )
            )
        return LazyUpdate(tuple(factors), self.update_size)

    def materialised(self, x: Tensor, y: Tensor) -> DenseUpdate:
        """u(x, y) one gradient an example: the general fallback, and the reference the lazy form is tested against.

        `vmap` runs the forward pass on one copy of the parameters an example, and plain autograd differentiates it:
        differentiated once more, `vmap(grad)` would forget how the statistics of a LayerNorm depend on its input.

        Args as for `update`, with equal leading dimensions. A batch that its network mixes counts as one example.
        """
        lead, batch = y.shape[:-1], y.shape[-1]
        values = dict(self.network.named_parameters())
        owner = {id(p): name for name, p in values.items()}
        # functional_call's own tie_weights puts a wrapped tensor back into a module that is registered twice
        ties = {
            f"{prefix}.{leaf}" if prefix else leaf: owner[id(p)]
            for prefix, module in self.network.named_modules()
            for leaf, p in module._parameters.items()
            if p is not None
        }
        buffers = dict(self.network.named_buffers())

        def loss(parameters: dict[str, Tensor], xs: Tensor, ys: Tensor) -> Tensor:
            given = {name: parameters.get(first, values[first]) for name, first in ties.items()}
            logits = functional_call(self.network, {**buffers, **given}, (xs,), tie_weights=False)
            return F.cross_entropy(logits, ys, reduction="sum") / batch

        rows = 1 if self.mixes_batch else batch
        xs = x.reshape(-1, batch // rows, *self.input_shape)
        ys = y.reshape(-1, batch // rows)
        differentiable = torch.is_grad_enabled() and x.requires_grad
        parts = []
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
            for xk, yk in zip(xs.split(64), ys.split(64), strict=True):  # the graph holds one whole gradient a row
                copies = {n: p.expand(len(xk), *p.shape).requires_grad_() for n, p in self.parameters.items()}
                total = vmap(loss, randomness="error")(copies, xk, yk).sum()
                grads = torch.autograd.grad(
                    total, list(copies.values()), create_graph=differentiable, materialize_grads=True
                )
                parts.append(torch.cat([g.flatten(1) for g in grads], 1))
        return DenseUpdate(torch.cat(parts).reshape(*lead, rows, -1))

    def split(self, g: Tensor) -> dict[str, Tensor]:
        """A flat update (*chains, update_size) as named tensors (*chains, *shape)."""
        parts = g.split([s.numel() for s in self.layers.values()], -1)
        return {n: p.reshape(*g.shape[:-1], *s) for (n, s), p in zip(self.layers.items(), parts, strict=True)}


def _layer_calls(
    network: nn.Module, x: Tensor, y: Tensor, layers: dict[str, torch.Size]
) -> tuple[list[tuple[str, nn.Module, Tensor, Tensor]], bool]:
    """One forward and one backward pass; returns (prefix, module, input a, output gradient δ) per layer call."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    handles = []
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        if f"{prefix}weight" in layers or f"{prefix}bias" in layers:

            def hook(module: nn.Module, args: tuple, output: Tensor, prefix: str = prefix) -> Tensor:
                if not output.requires_grad:  # nothing differentiable upstream: δ still needs a graph
                    output = output.requires_grad_()
                calls.append((prefix, module, args[0], output))
                return output

            handles.append(module.register_forward_hook(hook))
    differentiable = torch.is_grad_enabled() and x.requires_grad
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be differentiated twice
            loss = F.cross_entropy(network(x), y, reduction="sum")
            # The graph is kept: the log-density is differentiated in x through δ.
            deltas = torch.autograd.grad(loss, [c[3] for c in calls], create_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    return [(n, m, a, d) for (n, m, a, _), d in zip(calls, deltas, strict=True)], differentiable


def _rows(module: nn.Module, inputs: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """A layer call as rows of outer products: (n, groups, positions, fan_in) and (n, groups, positions, fan_out)."""
    if isinstance(module, nn.Linear):
        return inputs.flatten(1, -2).unsqueeze(1) if inputs.dim() > 2 else inputs[:, None, None], (
            deltas.flatten(1, -2).unsqueeze(1) if deltas.dim() > 2 else deltas[:, None, None]
        )
    assert isinstance(module, nn.Conv2d)
    groups = module.groups
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        inputs = F.pad(
            inputs,
            module._reversed_padding_repeated_twice,
            mode="constant" if module.padding_mode == "zeros" else module.padding_mode,
        )
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = module.padding
    patches = F.unfold(inputs, module.kernel_size, module.dilation, padding, module.stride)
    a = patches.unflatten(1, (groups, -1)).mT
    d = deltas.flatten(2).unflatten(1, (groups, -1)).mT
    return a, d


def build(network: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> Client:
    """A client that attacks can differentiate: the network is copied, frozen and checked once.

    Raises:
        BadInput: the network does not take `input_shape`, does not give `num_classes` logits, holds NaN, has no
            trainable parameters, or is random (dropout in train mode).
    """
    network = copy.deepcopy(network)
    layers = {name: p.shape for name, p in network.named_parameters() if p.requires_grad}
    if not layers:
        raise BadInput("the network has no trainable parameters, so it shares no gradient")
    for name, p in network.named_parameters():
        if not p.isfinite().all():
            raise BadInput(f"the network's parameter '{name}' holds NaN or infinity: load sound weights")
    network.requires_grad_(False)
    for module in network.modules():
        if getattr(module, "inplace", False):
            # an in-place activation would overwrite the outputs the hooks hold
            setattr(module, "inplace", False)  # noqa: B010 (mypy knows no such attribute)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            # train mode uses the batch's statistics; vmap cannot update the running ones in place
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False

    generator = torch.Generator().manual_seed(0)
    p = next(network.parameters())
    x = torch.rand(2, *input_shape, generator=generator).to(p)
    y = torch.arange(2, device=p.device) % num_classes
    generator_state = torch.get_rng_state()
    kinks, logits = probe(network, x)
    drew = not torch.equal(generator_state, torch.get_rng_state())  # a rare dropout changes no output, but draws
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BadInput(f"the network must return logits (batch, {num_classes}), but for a batch of 2 it returns {got}")
    if drew or not torch.equal(logits, network(x)):
        raise BadInput("the network is random (dropout in train mode?): call .eval() before sharing a gradient")
    try:
        mixes = not torch.allclose(network(x[:1]), logits[:1], rtol=1e-3, atol=1e-4)
    except (RuntimeError, ValueError):  # batch statistics of one example do not exist
        mixes = True

    client = Client(network, tuple(input_shape), num_classes, layers, False, mixes, kinks)
    return Client(network, client.input_shape, num_classes, layers, _closed_form(client, x, y), mixes, kinks)


def _closed_form(client: Client, x: Tensor, y: Tensor) -> bool:
    """True where the hooks' rows give the very gradient that `materialised` gives, on a probe batch."""
    owned = {
        f"{name}.{leaf}" if name else leaf
        for name, module in client.network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        for leaf in ("weight", "bias")
    }
    if client.mixes_batch or not set(client.layers) <= owned:
        return False
    try:
        lazy = client._factored(x, y)
        if sum(s.stop - s.start for f in lazy.factors for s in (f.weight, f.bias) if s) != client.update_size:
            return False  # a layer that the loss never saw: its zeros belong to the update, too
        if len(lazy.factors) != len({id(c[1]) for c in _layer_calls(client.network, x, y, client.layers)[0]}):
            return False  # a layer that is called twice would need cross terms between its factors
        reference = client.materialised(x, y).materialise()
        return torch.allclose(lazy.materialise(), reference, rtol=1e-3, atol=1e-5 * float(reference.abs().max()))
    except (RuntimeError, AssertionError, IndexError):  # IndexError: a layer called by keyword
        return False


def distrust(client: Client, method: str) -> tuple[str, ...]:
    """Why a method that follows slopes is not to be trusted on this client; () where the network is smooth."""
    if not client.kinks:
        return ()
    return (
        f"the network has kinks ({', '.join(client.kinks)}): its posterior jumps, {method} cannot cross the jumps, and "
        "this result is not to be trusted; attack a smooth activation, or a ReLU perceptron by --inference refractive, "
        "or a labelled approximation by --surrogate 100",
    )


def seeded(build_network: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Run a network's constructor with torch's generator seeded, and leave the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network()
