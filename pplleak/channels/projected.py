"""Compressed sensing: the server is sent fewer random measurements of the update than it has entries."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from pplleak.channels._base import Channel, Sigma, per_chain, per_entry, require_rate, require_sigma
from pplleak.client.update import DenseUpdate, Update
from pplleak.errors import BadInput, require_seed

OUTSIDE = 1e-3  # share of ‖g‖ that single precision may leave outside of the row space of A


@lru_cache(maxsize=8)  # a model builds the same channel at every step
def measurement(size: int, rate: float, matrix_seed: int) -> tuple[Tensor, Tensor]:
    """The signs s (D,), ±1 in float64, and the m rows that are kept, in order; the same for the same seed."""
    generator = torch.Generator().manual_seed(matrix_seed)
    signs = 1.0 - 2.0 * torch.randint(2, (size,), generator=generator).double()
    kept = max(1, size - round(rate * size))
    return signs, torch.randperm(size, generator=generator)[:kept].sort().values


def hartley(v: Tensor) -> Tensor:
    """H v along the last dimension, H_jk = [cos(2π jk/D) + sin(2π jk/D)] / √D: real, symmetric, and its own inverse."""
    found = torch.fft.fft(v, norm="ortho")
    return found.real - found.imag


class Projected(Channel):
    """y = A u + σ ε ∈ R^m,  ε ~ Normal(0, I),  m = D − round(rate D);  g = Aᵀ y, what the server makes of it.

        A = P H S,  A Aᵀ = I      S: random signs; H: the discrete Hartley transform; P: m rows, drawn at random
        log p(g | u) = −‖A (g − u)‖² / 2σ² − m log σ − (m/2) log 2π

    a density on the m-dimensional row space of A, where g lies and y = A g: the gradient that the server applies is the
    least-squares one, and knows as much as the measurements do. A is that of a subsampled randomised transform (Woolfe
    et al. 2008): D log D operations and two vectors in place of m × D numbers. The server has to know A: client and
    server share its seed, and A is the same in every round. What lies outside of the row space is not sent, and an
    adversary has it from the prior alone. It needs entries.

    Source: Konečný et al. 2016 (sketched updates: a structured random rotation, then sub-sampling). As a defence of
    gradients, compressed sensing is that of Chen et al. 2024, which was not at hand: y = A u + ε is taken from it.
    A sparse update could be recovered from y by basis pursuit; the server here does not try, so that g is linear in u.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the noise's standard deviation on each measurement, in the gradient's own units. Positive.
        rate: the share of the dimensions that are dropped, in [0, 1).
        matrix_seed: of the generator of A.
    """

    has_rsample = True

    def __init__(self, update: Update, sigma: Sigma = 0.1, *, rate: float = 0.9, matrix_seed: int = 0) -> None:
        require_sigma(sigma)
        require_rate(rate)
        require_seed(matrix_seed, "matrix_seed")
        self.sigma = sigma
        self.signs, self.rows = measurement(update.size, rate, matrix_seed)
        super().__init__(update, sigma=sigma, rate=rate, matrix_seed=matrix_seed)

    def measure(self, v: Tensor) -> Tensor:
        """A v, (…, m) of (…, D)."""
        return hartley(self.signs.to(v) * v)[..., self.rows.to(v.device)]

    def back(self, y: Tensor) -> Tensor:
        """Aᵀ y, (…, D) of (…, m)."""
        full = y.new_zeros(*y.shape[:-1], self.update.size)
        return self.signs.to(y) * hartley(full.index_copy(-1, self.rows.to(y.device), y))

    def measured(self) -> DenseUpdate:
        """A u as an update of m entries, each of which independent noise hides."""
        return DenseUpdate(self.measure(self.update.materialise().double())[..., None, :])

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        y = self.measure(u)
        return self.back(y + per_entry(self.sigma, y) * torch.randn_like(y))

    def log_prob(self, value: Tensor) -> Tensor:
        sigma, m = per_chain(self.sigma, value), len(self.rows)
        g, u = self.entries(value)
        y = self.measure(g)
        outside = g.square().sum(-1) - y.square().sum(-1)
        if not (outside <= OUTSIDE**2 * g.square().sum(-1)).all():
            raise BadInput(f"the observation does not lie in the {m} dimensions that are measured of {self.update.size}"
                           ": set rate and matrix_seed, or believe in another channel")  # fmt: skip
        square = (y - self.measure(u)).square().sum(-1)
        return -0.5 * square / sigma**2 - m * (sigma.log() + 0.5 * math.log(2 * math.pi))
