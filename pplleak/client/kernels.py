"""Which of torch's kernels a client's network runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode


class _Composed(TorchFunctionMode):
    """Functions whose kernel torch cannot differentiate twice, made of such as it can: the same values and slopes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


def call(func: Any, args: Any, kwargs: Any) -> Any:
    """A torch function, or what stands for it."""
    return _COMPOSED.get(func, func)(*args, **kwargs)


_COMPOSED = {F.hardsigmoid: _hardsigmoid, torch._C._nn.hardsigmoid: _hardsigmoid}


class _Convolution(torch.autograd.Function):
    """x ↦ W ∗ x, linear, with a frozen W: its slope is the adjoint, and that one's is the convolution again.

    torch's own second derivative of a convolution computes the gradient in W, which nobody asks for here, along with
    the one in x: a pass over all weights a layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.how, ctx.shape = how, x.shape
        return F.conv2d(x, weight, None, *how)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _Adjoint.apply(slope, weight, ctx.how, ctx.shape), None, None


class _Adjoint(torch.autograd.Function):
    """The gradient of a convolution in its input."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, weight: Tensor, how: tuple[Any, ...], shape: torch.Size) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.how = how
        found: Tensor = conv2d_input(list(shape), weight, slope, *how)
        return found

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _Convolution.apply(slope, weight, ctx.how), None, None, None


def conv2d(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """`torch.nn.functional.conv2d` without a bias, of a weight that no gradient is wanted in."""
    if not x.requires_grad:
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)
    found: Tensor = _Convolution.apply(x, weight, (stride, padding, dilation, groups))
    return found


@contextmanager
def unfused() -> Iterator[None]:
    """No fused attention or encoder layer: those kernels are differentiable once, and hide what happens in them."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def plain() -> Iterator[None]:
    """Only kernels that are differentiable twice and show every operation."""
    with unfused(), _Composed():
        yield
