"""The order in which a client that shuffles takes its examples: what a DataLoader draws, and the server does not see.

In each epoch a permutation of the N examples is cut into batches of b. Within a batch the order means nothing, so that
there are N! / Π_k b_k! orders of an epoch, b_k the sizes of its batches (the examples of a short batch that is dropped
are one, too), all of one probability, and independently for every epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput

MOST = 1_000  # orders to sum over: each is a whole local training
NEAR = 500  # neighbours of an order to look at


class Orders(TorchDistribution):
    """order ~ uniform; event shape (epochs, N): which example stands where, those of a batch in ascending order.

    Args:
        batches: sizes of the batches of an epoch, whose sum is N. epochs: how many.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_enumerate_support = True

    def __init__(self, batches: Sequence[int], epochs: int, batch_shape: torch.Size = torch.Size()) -> None:
        self.batches, self.epochs = tuple(batches), epochs
        super().__init__(torch.Size(batch_shape), torch.Size([epochs, sum(batches)]), validate_args=False)

    @classmethod
    def of(cls, training: LocalTraining, examples: int) -> Orders:
        """Those of a client with so many examples."""
        size = training.batch_size or examples
        return cls([min(size, examples - k) for k in range(0, examples, size)], training.epochs or 1)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, sum(self.batches) - 1), 2)

    @property
    def log_count(self) -> float:
        """The logarithm of how many orders there are."""
        return self.epochs * (math.lgamma(sum(self.batches) + 1) - sum(math.lgamma(b + 1) for b in self.batches))

    @property
    def count(self) -> int:
        """How many orders there are, which may be a number of very many digits."""
        return (math.factorial(sum(self.batches)) // math.prod(map(math.factorial, self.batches))) ** self.epochs

    def expand(self, batch_shape: torch.Size, _instance: Orders | None = None) -> Orders:
        return Orders(self.batches, self.epochs, torch.Size(batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        return self.sorted(torch.rand(shape).argsort(-1))

    def sorted(self, order: Tensor) -> Tensor:
        """The same with the examples of every batch in ascending order."""
        return torch.cat([part.sort(-1).values for part in order.split(self.batches, -1)], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = np.broadcast_shapes(value.shape[:-2], self.batch_shape)
        return torch.full(shape, -self.log_count, dtype=torch.float64, device=value.device)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        if self.log_count > math.log(MOST) + 1e-6:
            raise BadInput(
                f"{sum(self.batches)} examples in batches of {self.batches[0]}, shuffled {self.epochs} times, make "
                f"about 10^{self.log_count / math.log(10):.0f} orders, too many to sum over: take the inference map, "
                "which moves through them"
            )
        epoch = list(_cuts(range(sum(self.batches)), self.batches))
        grid = torch.tensor(list(itertools.product(epoch, repeat=self.epochs)))
        grid = grid.reshape(len(grid), *(1 for _ in self.batch_shape), *self.event_shape)
        return grid.expand(len(grid), *self.batch_shape, *self.event_shape) if expand else grid

    def neighbours(self, order: Tensor) -> Tensor:
        """Orders (M, epochs, N) that differ from one (epochs, N) by two examples changing batches in an epoch: all of
        them, or up to NEAR drawn by torch's generator where there are more."""
        batch = torch.repeat_interleave(torch.arange(len(self.batches)), torch.tensor(self.batches))
        size = len(batch)
        if self.epochs * size * (size - 1) // 2 <= NEAR:
            every = itertools.product(range(self.epochs), itertools.combinations(range(size), 2))
            swaps = torch.tensor([(e, i, j) for e, (i, j) in every if batch[i] != batch[j]], dtype=torch.long)
            swaps = swaps.reshape(-1, 3)
        else:
            swaps = torch.stack([torch.randint(n, (4 * NEAR,)) for n in (self.epochs, size, size)], 1)
            swaps = swaps[batch[swaps[:, 1]] != batch[swaps[:, 2]]][:NEAR]
        near, (e, i, j) = order.repeat(len(swaps), 1, 1), swaps.unbind(1)
        each = torch.arange(len(swaps))
        near[each, e, i], near[each, e, j] = order[e, j], order[e, i]
        return self.sorted(near)


def _cuts(left: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every way to deal out what is left to batches of these sizes, each ascending, one behind the other."""
    if not sizes:
        yield ()
        return
    for batch in itertools.combinations(left, sizes[0]):
        for rest in _cuts([n for n in left if n not in batch], sizes[1:]):
            yield (*batch, *rest)
