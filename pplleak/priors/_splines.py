"""A normalising flow as a Pyro distribution: zuko's are not Pyro sites by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pplleak.errors import BadInput

if TYPE_CHECKING:
    import zuko

TRANSFORMS = 3


class Flow(TorchDistribution):
    """A zuko distribution over real vectors, event shape (dim,): ``flow()``, or ``flow(c)``, one for every context."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: zuko.distributions.Distribution) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Flow | None = None) -> Flow:
        return Flow(self.base.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value)


def coupling_spline(
    dim: int,
    *,
    transforms: int = TRANSFORMS,
    hidden: int = 64,
    context: int = 0,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dtype: torch.dtype,
) -> zuko.flows.Flow:
    """A neural spline flow with coupling layers (Durkan et al. 2019): fast both ways; identity outside [-5, 5].

    It starts as the identity everywhere, so that what it is composed with is where it starts. With a context,
    ``flow(c)`` is one distribution for every c (…, context).
    """
    import zuko  # where it is used: most priors need no flow

    flow = zuko.flows.NSF(dim, context, transforms=transforms, hidden_features=(hidden, hidden), activation=activation,
                          passes=2)  # fmt: skip
    for coupling in flow.transform.transforms:
        nn.init.zeros_(coupling.hyper[-1].weight)
        nn.init.zeros_(coupling.hyper[-1].bias)
    return flow.to(dtype)


def restored_spline(tensors: Mapping[str, Tensor], dtype: torch.dtype, context: int = 0) -> tuple[zuko.flows.Flow, int]:
    """A coupling spline of SiLU networks from its parameters, and its dimensions; nothing in it is fitted any more.

    Raises:
        BadInput: they are not those of such a spline with so large a context.
    """
    no_spline = BadInput("the tensors of its flow are not those of a spline flow")
    first = [t for n, t in tensors.items() if n.endswith("hyper.0.weight")]
    if len(first) != TRANSFORMS or first[0].shape[1] < 2 + context:
        raise no_spline
    dim, hidden = first[0].shape[1] - context, first[0].shape[0]
    if any(t.shape != (hidden, hidden) for n, t in tensors.items() if n.endswith("hyper.2.weight")):
        raise no_spline  # before one of that size is made
    flow = coupling_spline(dim, hidden=hidden, context=context, activation=nn.SiLU, dtype=dtype)
    flow.load_state_dict(tensors, strict=False)
    if {n for n, _ in flow.named_parameters()} != set(tensors):
        raise no_spline
    return flow.requires_grad_(False).to(first[0].device), dim
