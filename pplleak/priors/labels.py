"""p(y): what the adversary knows of the labels before."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pplleak.errors import BadInput


class Labels(TorchDistribution):
    """y_b ~ Categorical(logits), independently for each example; event shape (batch_size,).

    The batch is one event, so that enumeration runs over whole label vectors: num_classes ** batch_size of them.

    Args:
        logits: (num_classes,)
        batch_size: examples.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_enumerate_support = True
    MAX_ENUMERATED = 10_000

    def __init__(
        self,
        logits: Tensor,
        batch_size: int = 1,
        batch_shape: torch.Size = torch.Size(),
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.batch_size = logits, batch_size
        super().__init__(torch.Size(batch_shape), torch.Size([batch_size]), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, len(self.logits) - 1), 1)

    def expand(self, batch_shape: torch.Size, _instance: Labels | None = None) -> Labels:
        return Labels(self.logits, self.batch_size, torch.Size(batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        return torch.distributions.Categorical(logits=self.logits).sample(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        lp = self.logits.log_softmax(-1)[value].sum(-1)
        return lp.expand(np.broadcast_shapes(lp.shape, self.batch_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        count = len(self.logits) ** self.batch_size
        if count > self.MAX_ENUMERATED:
            raise BadInput(
                f"{len(self.logits)} classes and batch size {self.batch_size} make {count} label vectors, too many to "
                "enumerate: give the labels, recover them, take fewer examples, or the inference map, which moves "
                "through them"
            )
        grid = torch.tensor(list(itertools.product(range(len(self.logits)), repeat=self.batch_size)))
        grid = grid.to(self.logits.device).reshape(count, *(1 for _ in self.batch_shape), self.batch_size)
        return grid.expand(count, *self.batch_shape, self.batch_size) if expand else grid

    def neighbours(self, y: Tensor) -> Tensor:
        """Every label vector (M, batch_size) that differs from one (batch_size,) in one label, or by two that change
        places."""
        classes, size = len(self.logits), self.batch_size
        near = []
        for b in range(size):
            others = y.expand(classes, size).clone()
            others[:, b] = torch.arange(classes, device=y.device)
            near.append(others[others[:, b] != y[b]])
        for b, c in itertools.combinations(range(size), 2):
            if y[b] != y[c]:
                swapped = y.clone()
                swapped[b], swapped[c] = y[c], y[b]
                near.append(swapped[None])
        return torch.cat(near)

    def enumerate_counts(self) -> tuple[Tensor, Tensor]:
        """The label vectors up to the order of the examples: y₁ ≤ … ≤ y_B, and how many orders each has.

        With n_k examples of class k there are B! / Π n_k! orders, all of one probability, so that a sum over label
        vectors of something that does not see the order is Σ exp(log_orders) p(y) over these.

        Returns:
            y (C(K + B − 1, B), batch_size) and log_orders (C(K + B − 1, B),), float64.
        """
        classes, size = len(self.logits), self.batch_size
        count = math.comb(classes + size - 1, size)
        if count > self.MAX_ENUMERATED:
            raise BadInput(
                f"{classes} classes and batch size {size} make {count} label counts, too many to enumerate: give the "
                "labels, recover them, take a smaller batch, or the inference map, which moves through them"
            )
        y = torch.tensor(list(itertools.combinations_with_replacement(range(classes), size)), device=self.logits.device)
        counts = torch.nn.functional.one_hot(y, classes).sum(-2).double()
        return y, math.lgamma(size + 1) - torch.lgamma(counts + 1).sum(-1)
