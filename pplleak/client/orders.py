"""The order in which a client that shuffles takes its examples: what a DataLoader draws, and the server does not see.

In each epoch a permutation of the N examples is cut into batches of b. Within a batch the order means nothing, so that
there are N! / Π_k b_k! orders of an epoch, b_k the sizes of its batches (the examples of a short batch that is dropped
are one, too), all of one probability, and independently for every epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput

MOST = 1_000  # orders to sum over: each is a whole local training


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
    def count(self) -> int:
        """How many orders there are."""
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
        shape = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        return torch.full(shape, -math.log(self.count), dtype=torch.float64, device=value.device)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        if self.count > MOST:
            raise BadInput(
                f"{sum(self.batches)} examples in batches of {self.batches[0]}, shuffled {self.epochs} times, make "
                f"{self.count} orders, too many to sum over: take the inference map, which moves through them"
            )
        epoch = list(_cuts(range(sum(self.batches)), self.batches))
        grid = torch.tensor(list(itertools.product(epoch, repeat=self.epochs)))
        grid = grid.reshape(len(grid), *(1 for _ in self.batch_shape), *self.event_shape)
        return grid.expand(len(grid), *self.batch_shape, *self.event_shape) if expand else grid

    def neighbours(self, order: Tensor) -> Tensor:
        """Every order (M, epochs, N) that differs from one (epochs, N) by two examples changing batches in an epoch."""
        ends = list(itertools.accumulate(self.batches))
        batch = [next(k for k, end in enumerate(ends) if place < end) for place in range(ends[-1])]
        pairs = [(i, j) for i, j in itertools.combinations(range(ends[-1]), 2) if batch[i] != batch[j]]
        moved = [order.clone() for _ in range(self.epochs * len(pairs))]
        for near, (e, (i, j)) in zip(moved, itertools.product(range(self.epochs), pairs), strict=True):
            near[e, i], near[e, j] = order[e, j], order[e, i]
        return self.sorted(torch.stack(moved)) if moved else order.new_empty(0, *order.shape)


def _cuts(left: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every way to deal out what is left to batches of these sizes, each ascending, one behind the other."""
    if not sizes:
        yield ()
        return
    for batch in itertools.combinations(left, sizes[0]):
        for rest in _cuts([n for n in left if n not in batch], sizes[1:]):
            yield (*batch, *rest)
