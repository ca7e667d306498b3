"""The part of a convolution's kernel that meets the image.

Where a kernel reaches beyond a small image at every position, it multiplies nothing but padding, and the gradient of
those weights is 0: of a 3 × 3 kernel on an image of 1 × 1, as at the end of a ResNet on 32 × 32 pixels, eight weights
in nine. What is cut off is neither read nor multiplied; the values are the same.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from pplleak.client.kept import kept

Ends = tuple[int, int]  # the first, and one behind the last


@dataclass(frozen=True)
class Window:
    """Rows and columns of a kernel (height, width) that meet the image somewhere."""

    kernel: tuple[int, int]
    rows: Ends
    columns: Ends

    def of(self, t: Tensor) -> Tensor:
        """(…, height, width) -> (…, rows, columns)."""
        return t[..., slice(*self.rows), slice(*self.columns)]

    def filled(self, t: Tensor) -> Tensor:
        """(…, rows, columns) -> (…, height, width), with 0 elsewhere."""
        (top, bottom), (left, right) = self.rows, self.columns
        return F.pad(t, (left, self.kernel[1] - right, top, self.kernel[0] - bottom))

    def of_fan(self, t: Tensor) -> Tensor:
        """(…, n · height · width) -> (…, n · rows · columns)."""
        return self.of(t.unflatten(-1, (-1, *self.kernel))).flatten(-3)

    def filled_fan(self, t: Tensor) -> Tensor:
        """(…, n · rows · columns) -> (…, n · height · width), with 0 elsewhere."""
        own = [last - first for first, last in (self.rows, self.columns)]
        return self.filled(t.unflatten(-1, (-1, *own))).flatten(-3)


def seen(
    input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any
) -> tuple[Window | None, Tensor, tuple[int, int]]:
    """What of the kernel meets the image, None where that is all of it; the image, padded or cut where no padding on
    both sides does it; and that padding. A convolution of the image with that window of the kernel is the same.

    Args: as of `torch.nn.functional.conv2d`, for input (examples, channels, height, width).
    """
    kernel: Any = tuple(weight.shape[2:])
    strides, dilations = pair(stride), pair(dilation)
    before, after = _padding(padding, kernel, dilations)
    sizes = input.shape[2:]
    ends = [_meets(*along) for along in zip(sizes, kernel, strides, before, after, dilations, strict=True)]
    if all(end == (0, k) for end, k in zip(ends, kernel, strict=True)):
        if before == after:
            return None, input, before
        return None, F.pad(input, (before[1], after[1], before[0], after[0])), (0, 0)
    frame = []
    along = zip(sizes, kernel, strides, before, after, dilations, ends, strict=True)
    for n, k, s, low, high, d, (first, last) in along:
        end = (_outputs(n, k, s, low, high, d) - 1) * s + (last - 1) * d - low
        frame.append((low - first * d, end - (n - 1)))
    window = Window(kernel, *ends)
    if all(low == high >= 0 for low, high in frame):
        return window, input, (frame[0][0], frame[1][0])
    return window, F.pad(input, (*frame[1], *frame[0])), (0, 0)


def outputs(input: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> list[int]:
    """Height and width of the convolution's output; arguments as for `seen`."""
    kernel, dilations = pair(weight.shape[2:]), pair(dilation)
    along = zip(input.shape[2:], kernel, pair(stride), *_padding(padding, kernel, dilations), dilations, strict=True)
    return [_outputs(*one) for one in along]


def _outputs(n: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    return (n + before + after - dilation * (kernel - 1) - 1) // stride + 1


@functools.cache  # of a few sizes a network
def _meets(n: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> Ends:
    """Along one dimension: the taps that lie on the image at some output; at least one."""
    places = range(_outputs(n, kernel, stride, before, after, dilation))
    at = [j for j in range(kernel) if any(0 <= o * stride - before + j * dilation < n for o in places)]
    return (at[0], at[-1] + 1) if at else (0, 1)


def _padding(padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[Any, Any]:
    """Before and behind the image, along both dimensions."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return pair(padding), pair(padding)


def pair(value: Any) -> tuple[int, int]:
    """A setting of both dimensions, which may be given as one number."""
    if isinstance(value, int):
        return value, value
    one, *other = value
    return one, other[0] if other else one


def cut(weight: Tensor, window: Window) -> Tensor:
    """The window of a frozen weight (out, in, height, width), contiguous; kept as long as the weight."""

    def made() -> Tensor:
        with disable_proxy_modes_tracing():  # a constant of every recording
            return window.of(weight.detach()).contiguous()

    return kept(weight, window, made)
