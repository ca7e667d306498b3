"""What each parameter's gradient is made of, read off one forward and one backward pass over all examples.

A tap watches the torch functions that a parameter goes through, so that functional calls are seen as modules are:

    linear, conv2d       the input a and, from the backward pass, the gradient δ at the output: ∇W = Σ_r δ_r a_rᵀ
    addmm                the same of a layer whose weight lies transposed, (fan_in, fan_out): ∇W = Σ_r a_r δ_rᵀ
    embedding            the ids w and the gradient δ at the rows that were looked up: ∇W_v = Σ_r δ_r [w_r = v]
    batch_norm           in eval mode γ x̂ + β with x̂ affine in x: ∇γ = Σ δ x̂ and ∇β = Σ δ, over the positions
    layer_norm, …        γ x̂ + β, with x̂ normalised: every example gets copies of γ and β of its own
    p + x, p.expand(n)   the same for any other parameter that meets the examples by broadcasting (a class token)
    attention            the packed projection of q, k and v and the one behind it, each as linear

The gradient at an example's own copy of a parameter is that example's share, so nothing is summed over chains. What
goes through any other function has no tap; `Client` finds that out, and the client then materialises.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pplleak.client import kernels, windows
from pplleak.client.windows import Window


@dataclass(frozen=True, eq=False)
class Call:
    """A layer call: rows a and δ (examples, groups, positions, fan), whose outer products sum to ∇W.

    weight, bias: the parameters' names, or None where there is none or it is frozen
    window: of a kernel that reaches beyond the image, the part that meets it; a holds that part alone
    """

    inputs: Tensor
    deltas: Tensor
    weight: str | None
    bias: str | None
    window: Window | None = None


@dataclass(frozen=True, eq=False)
class Looked:
    """Rows of a table that were looked up: ids (examples, positions), and δ there (examples, positions, width)."""

    ids: Tensor
    deltas: Tensor
    name: str


@dataclass(frozen=True, eq=False)
class Copies:
    """A parameter's gradient example by example: gradients (examples, entries)."""

    gradients: Tensor
    name: str


FEW = 32  # rows up to which a matrix product of patches is faster than a convolution's kernels
Rows = Callable[[Tensor], tuple[Tensor, Tensor]]
Shares = Callable[[Tensor], list[Call | Looked | Copies]]  # of the gradient at a tap


def read(
    network: nn.Module, x: Sequence[Tensor], loss: Callable[[Any], Tensor], names: dict[int, str]
) -> list[Call | Looked | Copies]:
    """Every tapped use of a parameter in loss(network(*x)).

    Args:
        x: what the network takes, each (examples, …). names: id of a trainable parameter -> its name.
    Differentiable in x where one of them requires a gradient; the calls' tensors hold no graph otherwise.
    """
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in x)
    with torch.enable_grad(), kernels.unfused():
        with _Taps(names, len(x[0])) as taps:
            output = network(*x)
        at = [tensor for tensor, _ in taps.taps]
        gradients = torch.autograd.grad(loss(output), at, create_graph=differentiable, materialize_grads=True)
    with torch.set_grad_enabled(differentiable):
        found = [part for (_, shares), d in zip(taps.taps, gradients, strict=True) for part in shares(d)]
    # a view is made of its base's graph even where none is kept
    return found if differentiable else [_detached(part) for part in found]


def _detached(part: Call | Looked | Copies) -> Call | Looked | Copies:
    tensors: dict[str, Any] = {n: t.detach() for n, t in vars(part).items() if isinstance(t, Tensor)}
    return replace(part, **tensors)


class _Taps(TorchFunctionMode):
    """Collects tensors of the forward pass, each with what the gradient there says of parameters."""

    def __init__(self, names: dict[int, str], examples: int) -> None:
        super().__init__()
        self.names, self.examples = names, examples
        self.taps: list[tuple[Tensor, Shares]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("inplace"):  # it would overwrite the outputs that are tapped
            kwargs = {**kwargs, "inplace": False}
        if func in _NORMS:
            return self._norm(func, *args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._attention(*args, **kwargs)
        if any(id(a) in self.names for a in (*args, *kwargs.values())):
            if func == F.linear:
                return self._linear(*args, **kwargs)
            if func == F.conv2d:
                return self._conv2d(*args, **kwargs)
            if func is torch.addmm and not kwargs:
                return self._addmm(*args)
            if func == F.embedding:
                return self._embedding(*args, **kwargs)
            if func.__name__.strip("_") in _BROADCASTING:
                dims = max(a.dim() for a in args if isinstance(a, Tensor))
                return func(*(self._copied(a, dims) for a in args), **kwargs)
        return kernels.call(func, args, kwargs)

    def _tap(self, output: Tensor, shares: Shares) -> Tensor:
        if not output.requires_grad:  # nothing differentiable upstream: δ still needs a graph
            output.requires_grad_()
        self.taps.append((output, shares))
        return output

    def _layer(
        self, output: Tensor, rows: Rows, weight: Tensor, bias: Tensor | None, window: Window | None = None
    ) -> Tensor:
        names = self.names.get(id(weight)), self.names.get(id(bias))
        return output if names == (None, None) else self._tap(output, lambda d: [Call(*rows(d), *names, window)])

    def _copied(self, a: Any, dims: int) -> Any:
        """A parameter as one copy an example, of `dims` dimensions; anything else as it is."""
        name = self.names.get(id(a))
        if name is None or (a.dim() == dims and a.shape[0] != 1):
            return a
        return self._copies(a, name, dims)

    def _copies(self, value: Tensor, name: str, dims: int) -> Tensor:
        own = value.shape[1:] if value.dim() == dims else value.shape
        shape = (self.examples, *(1,) * (dims - 1 - len(own)), *own)
        return self._tap(value.detach().expand(shape), lambda d: [Copies(d.reshape(len(d), -1), name)])

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        def rows(d: Tensor) -> tuple[Tensor, Tensor]:
            return tuple(t.reshape(len(t), 1, -1, t.shape[-1]) for t in (input, d))  # type: ignore[return-value]

        return self._layer(F.linear(input, weight, bias), rows, weight, bias)

    def _addmm(self, bias: Tensor, input: Tensor, weight: Tensor) -> Tensor:
        """A linear layer of examples whose positions lie one after the other: input (examples · positions, fan_in)."""

        def rows(d: Tensor) -> tuple[Tensor, Tensor]:  # of Wᵀ: the roles change
            return tuple(t.reshape(self.examples, 1, -1, t.shape[-1]) for t in (d, input))  # type: ignore[return-value]

        output = torch.addmm(bias, input, weight)
        if bias.dim() != 1 or len(input) % self.examples:
            return output
        if id(bias) in self.names:  # ∇b is a sum of the layer's δ, which this form calls a
            output = torch.addmm(torch.zeros_like(bias), input, weight).unflatten(0, (self.examples, -1))
            output = (output + self._copies(bias, self.names[id(bias)], 3)).flatten(0, 1)
        return self._layer(output, rows, weight, None)

    def _embedding(self, *args: Any, **kwargs: Any) -> Tensor:
        """Rows (examples, positions, width); the same ids of all examples, (1, positions), become each one's own."""
        given = inspect.signature(F.embedding).bind(*args, **kwargs)
        given.apply_defaults()
        ids, weight, a = given.arguments["input"], given.arguments["weight"], given.arguments
        plain = a["max_norm"] is None and not a["scale_grad_by_freq"] and not a["sparse"]
        if not plain or ids.dim() != 2 or len(ids) not in (1, self.examples):
            return F.embedding(*args, **kwargs)
        ids, padding, name = ids.expand(self.examples, -1), a["padding_idx"], self.names[id(weight)]

        def shares(d: Tensor) -> list[Call | Looked | Copies]:
            return [Looked(ids, d if padding is None else d * (ids != padding)[..., None], name)]

        return self._tap(F.embedding(ids, weight), shares)

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        window, a, pad = windows.seen(input, weight, stride, padding, dilation)
        kernel = weight if window is None else windows.cut(weight, window)
        stride, dilation = windows.pair(stride), windows.pair(dilation)

        plain = kernel.shape[2:] == (1, 1) and stride == (1, 1) and pad == (0, 0)

        def patches() -> Tensor:
            return a.flatten(2) if plain else F.unfold(a, kernel.shape[2:], dilation, pad, stride)

        sizes = windows.outputs(input, weight, stride, padding, dilation)
        if groups == 1 and len(a) * math.prod(sizes) <= FEW:
            seen = patches().mT.contiguous()
            # contiguous: without it, the slopes of a native batch_norm behind it were seen to come out wrong
            out = F.linear(seen, kernel.flatten(1)).mT.contiguous().unflatten(2, sizes)

            def rows(d: Tensor) -> tuple[Tensor, Tensor]:
                return seen[:, None], d.flatten(2).mT[:, None]
        else:
            out = kernels.conv2d(a, kernel, stride, pad, dilation, groups)

            def rows(d: Tensor) -> tuple[Tensor, Tensor]:
                return patches().unflatten(1, (groups, -1)).mT, d.flatten(2).unflatten(1, (groups, -1)).mT

        out = out if bias is None else out + bias.view(-1, 1, 1)
        return self._layer(out, rows, weight, bias, window)

    def _norm(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        bound = _signature(func).bind(*args, **kwargs)
        scale_shift = [bound.arguments.get(n) for n in ("weight", "bias")]
        if not any(id(p) in self.names for p in scale_shift):
            return func(*args, **kwargs)
        if func is F.batch_norm and not bound.arguments.get("training", False):
            return self._batch_norm(**bound.arguments)
        bound.arguments.update({n: None for n in ("weight", "bias") if n in bound.arguments})
        out = func(*bound.args, **bound.kwargs)
        for k, p in enumerate(scale_shift):
            if p is not None:
                value = p if func in _OVER_LAST_DIMENSIONS else p.reshape(-1, *(1,) * (out.dim() - 2))
                name = self.names.get(id(p))
                value = value if name is None else self._copies(value, name, out.dim())
                out = out + value if k else out * value
        return out

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        **_: Any,
    ) -> Tensor:
        """By the running statistics: one scale and one shift a channel, and no copies of the image but its own."""

        def over_channels(t: Tensor) -> Tensor:
            return t.reshape(-1, *(1,) * (input.dim() - 2))

        scale = (running_var + eps).rsqrt()
        shift = -running_mean * scale
        names = self.names.get(id(weight)), self.names.get(id(bias))

        def shares(d: Tensor) -> list[Call | Looked | Copies]:
            normalised = torch.addcmul(over_channels(shift), input, over_channels(scale))
            of = (d * normalised, d)
            return [Copies(t.flatten(2).sum(2) if t.dim() > 2 else t, n)
                    for t, n in zip(of, names, strict=True) if n is not None]  # fmt: skip

        gain, offset = scale, shift
        if weight is not None:
            gain, offset = gain * weight, offset * weight
        offset = offset if bias is None else offset + bias
        return self._tap(torch.addcmul(over_channels(offset), input, over_channels(gain)), shares)

    def _attention(self, *args: Any, **kwargs: Any) -> Any:
        """Plain self-attention, (positions, examples, width); masks and other extras are left to the fallback."""
        func = F.multi_head_attention_forward
        given = _signature(func).bind(*args, **kwargs)
        given.apply_defaults()
        a = given.arguments
        x, extras = a["query"], ("bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "attn_mask", "static_k",
                                 "static_v", "need_weights", "use_separate_proj_weight", "is_causal")  # fmt: skip
        plain = x.dim() == 3 and x is a["key"] and x is a["value"] and not (a["training"] and a["dropout_p"])
        if not plain or any(a[e] is not None and a[e] is not False for e in extras):
            return func(*args, **kwargs)
        packed = self._linear(x.transpose(0, 1), a["in_proj_weight"], a["in_proj_bias"])
        q, k, v = (t.unflatten(-1, (a["num_heads"], -1)).transpose(1, 2) for t in packed.chunk(3, -1))
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self._linear(heads, a["out_proj_weight"], a["out_proj_bias"]).transpose(0, 1), None


_signature = functools.cache(inspect.signature)
_NORMS = {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm}
_OVER_LAST_DIMENSIONS = {F.layer_norm, F.rms_norm}
_BROADCASTING = {"add", "sub", "rsub", "mul", "div", "expand"}
