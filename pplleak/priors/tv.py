"""Total variation: a Gibbs prior, known up to its normaliser only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import pyro
import torch
from torch import Tensor

from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors.uniform import Box
from pplleak.priors.uniform import prior as box

UNKNOWN = (
    "the total variation prior is known only up to its normaliser: it can be multiplied into a model (pyro.factor) and "
    "{cannot}; its proper relative that can is `gmrf`"
)


@dataclass(frozen=True)
class TotalVariation:
    """p(x) ∝ exp(−weight Σ over pixels and channels of V(∂x)) on the pixel box    (Rudin, Osher & Fatemi 1992)

        V(∂x) = √(right² + down²)          isotropic
        V(∂x) = |right| + |down|           anisotropic

    with the differences to the neighbours on the right and below, 0 at the border. A model multiplies it onto a proper
    base, the flat prior on the box, by ``pyro.factor("tv", -tv.energy(x))``.

    weight: per pixel unit, positive. smoothing: √(d² + smoothing²) − smoothing instead of |d|, which has a kink that
    slows Hamiltonian samplers down; 0 is the exact total variation.
    """

    weight: float = 1.0
    isotropic: bool = False
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_positive(weight=self.weight)
        if not 0 <= self.smoothing < float("inf"):
            raise BadInput(f"smoothing must not be negative, not {self.smoothing}")

    def energy(self, x: Tensor) -> Tensor:
        """weight · TV for x (*chains, batch, channels, rows, columns), summed over the batch; (*chains,)."""
        if x.dim() < 4:
            raise BadInput(f"total variation needs images (batch, channels, rows, columns), not shape {tuple(x.shape)}")
        right = torch.diff(x, dim=-1, append=x[..., -1:])
        down = torch.diff(x, dim=-2, append=x[..., -1:, :])
        if self.isotropic:
            lengths = self._length(right.square() + down.square())
        elif self.smoothing:
            lengths = self._length(right.square()) + self._length(down.square())
        else:
            lengths = right.abs() + down.abs()
        return self.weight * lengths.sum((-4, -3, -2, -1))

    def _length(self, square: Tensor) -> Tensor:
        tiny = torch.finfo(square.dtype).tiny  # the root's slope at 0 is infinite, and 0 · ∞ is no gradient
        return (square + self.smoothing**2).clamp(min=tiny).sqrt() - self.smoothing

    def sample(self, *shape: object) -> NoReturn:
        """Raises BadInput: there is no exact sampler."""
        raise BadInput(UNKNOWN.format(cannot="not sampled from"))

    def log_prob(self, x: Tensor) -> NoReturn:
        """Raises BadInput: the normaliser is not known; `energy` is the rest."""
        raise BadInput(UNKNOWN.format(cannot="has no log-density of its own"))


@dataclass(frozen=True)
class OnBox:
    """p(x) ∝ exp(−energy(x)) on the pixel box: total variation multiplied onto the flat prior, for a model."""

    base: Box
    variation: TotalVariation

    def sample(self, batch_size: int = 1) -> Tensor:
        """Site x (*chains, batch_size, *input_shape) and the factor tv.

        Pyro ignores factors where nothing is observed: unconditioned draws are those of the flat prior.
        """
        x = self.base.sample(batch_size)
        pyro.factor("tv", -self.variation.energy(x))
        return x


def prior(
    like: Like,
    *,
    reference: str | Tensor = "digits",
    weight: float = 1.0,
    isotropic: bool = False,
    smoothing: float = 0.01,
) -> OnBox:
    """Total variation on the box of the client's images.

    Args:
        reference: not used: the weight is not fitted.
        weight: of the total variation, in nats per pixel unit.
        isotropic: the length of the gradient, instead of the sum of its two parts.
        smoothing: differences far below it, in pixel units, count by their square; 0 is the exact total variation.
    """
    return OnBox(box(like), TotalVariation(weight, isotropic=isotropic, smoothing=smoothing))
