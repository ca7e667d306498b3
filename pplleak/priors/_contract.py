"""What a prior is made for, and what a model asks of it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Like(Protocol):
    """What a prior is made like: a `Client`, or anything else that says which images it takes, how and where."""

    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


class Prior(Protocol):
    """p(x), as a model draws from it."""

    def sample(self, batch_size: int = 1) -> Tensor:
        """x (*chains, batch_size, *input_shape), inside a Pyro model: its latent sites, and `x` itself as a site."""
        ...


@runtime_checkable
class Conditional(Protocol):
    """p(x | y): a model draws the labels first."""

    def of_class(self, y: Tensor) -> Prior:
        """p(x | y) for labels y (…, batch_size), on whose leading dimensions x stands as well."""
        ...
