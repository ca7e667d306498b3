"""What an example is to be mapped onto, where that is no class: vectors, by rows of a table; or the input itself.

    classes         y_b ∈ {0, …, K − 1}
    probabilities   a vector of K that sums to 1 (soft labels)
    binary          a vector of K zeros and ones (multi-label)
    real            a vector of K real numbers (regression)
    input           the input x_b itself (an autoencoder)

The label y_b of an example is a whole number in each case: of vectors, the row of `Client.targets` (T, K) that is its
target. Those that were shared are such a table, and so are all 2^K binary ones, over which a sum runs like over
classes. Real vectors and probabilities that nobody shared are a latent of their own, with the prior of `prior`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from pyro.distributions import Dirichlet, Normal, TorchDistribution
from torch import Tensor

from pplleak.errors import BadInput, printable
from pplleak.priors.labels import Labels

Kind = Literal["classes", "probabilities", "binary", "real", "input"]
VECTORS: tuple[Kind, ...] = ("probabilities", "binary", "real")


@functools.cache
def every_binary(outputs: int) -> Tensor:
    """All 2^K vectors of zeros and ones, (2^K, K), uint8; row Σ_k v_k 2^(K − 1 − k) is v.

    Raises:
        BadInput: there are too many to sum over.
    """
    if 2**outputs > Labels.MAX_ENUMERATED:
        raise BadInput(f"{outputs} logits have 2^{outputs} vectors of labels, too many to sum over: give the targets")
    return torch.tensor(list(itertools.product((0, 1), repeat=outputs)), dtype=torch.uint8)


def prior(kind: Kind, outputs: int, batch_size: int, like: Tensor) -> TorchDistribution:
    """Of targets that nobody shared, event shape (batch_size, K): real ones are standardised, as regression is trained,

    y_bk ~ Normal(0, 1);        probabilities y_b ~ Dirichlet(1, …, 1), uniform on the simplex.
    """
    one = torch.ones(batch_size, outputs, dtype=like.dtype, device=like.device)
    made = Normal(0 * one, one).to_event(2) if kind == "real" else Dirichlet(one).to_event(1)
    return made


def rows(kind: Kind, given: Sequence[Sequence[float]] | Tensor, outputs: int, batch_size: int) -> Tensor:
    """Targets of a batch as (batch_size, K) in float64.

    Raises:
        BadInput: another number of them, or values that are none of this kind.
    """
    try:
        flat = torch.as_tensor(given, dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # rows of different lengths, no numbers
        raise BadInput(f"targets are {outputs} numbers for each example, not {printable(given)}") from error
    if flat.numel() != batch_size * outputs or not flat.isfinite().all():
        raise BadInput(f"{flat.numel()} numbers as targets for a batch of {batch_size} and {outputs} outputs: give "
                       f"{batch_size * outputs} finite ones, example by example")  # fmt: skip
    made = flat.reshape(batch_size, outputs)
    if kind == "binary" and not ((made == 0) | (made == 1)).all():
        raise BadInput("binary targets are zeros and ones: for others take targets=probabilities or real")
    if kind == "probabilities" and not (((made >= 0).all()) and ((made.sum(1) - 1).abs() < 1e-4).all()):
        raise BadInput("probabilities are not negative and sum to 1 for each example")
    return made


def table(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Targets (B, K) as the rows that differ, (T, K), and which of them each example has, (B,)."""
    different, which = targets.unique(dim=0, return_inverse=True)
    return different, which
