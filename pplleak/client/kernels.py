"""Which of torch's kernels a client's network runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


class _Composed(TorchFunctionMode):
    """Functions whose kernel torch cannot differentiate twice, made of such as it can: the same values and slopes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        composed = _COMPOSED.get(func)
        return func(*args, **(kwargs or {})) if composed is None else composed(*args, **(kwargs or {}))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


_COMPOSED = {F.hardsigmoid: _hardsigmoid, torch._C._nn.hardsigmoid: _hardsigmoid}


@contextmanager
def plain() -> Iterator[None]:
    """Only kernels that are differentiable twice and show every operation: no fused attention or encoder layer."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _Composed():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
