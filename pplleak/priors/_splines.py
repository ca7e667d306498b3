"""A normalising flow as a Pyro distribution: zuko's are not Pyro sites by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

if TYPE_CHECKING:
    import zuko


class Flow(TorchDistribution):
    """A zuko distribution (``flow()``) over real vectors, event shape (dim,)."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: zuko.distributions.Distribution, batch_shape: torch.Size = torch.Size()) -> None:
        self.base = base
        super().__init__(torch.Size(batch_shape), base.event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Flow | None = None) -> Flow:
        return Flow(self.base, batch_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value)


def coupling_spline(
    dim: int,
    *,
    transforms: int = 3,
    hidden: int = 64,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dtype: torch.dtype,
) -> zuko.flows.Flow:
    """A neural spline flow with coupling layers (Durkan et al. 2019): fast both ways; identity outside [-5, 5].

    It starts as the identity everywhere, so that what it is composed with is where it starts.
    """
    import zuko  # where it is used: most priors need no flow

    flow = zuko.flows.NSF(dim, transforms=transforms, hidden_features=(hidden, hidden), activation=activation, passes=2)
    for coupling in flow.transform.transforms:
        nn.init.zeros_(coupling.hyper[-1].weight)
        nn.init.zeros_(coupling.hyper[-1].bias)
    return flow.to(dtype)
