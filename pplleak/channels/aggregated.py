"""Aggregation: the server sees the mean over several clients, of whom the adversary attacks one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplleak import data, memory
from pplleak.channels import _simulated
from pplleak.channels._base import Channel
from pplleak.client import Client
from pplleak.client.update import Update
from pplleak.errors import BadInput, require_positive

MOST = 10**9  # clients


class Aggregated(Channel):
    """g = (1/K) (u + Σ_{k=2}^K u_k) + σ ε, where the adversary knows how the other clients' updates are distributed:

        u_k ~ Normal(m, S),  S = diag(v) + F Fᵀ      p(g | u) = Normal(g; (u + (K−1) m) / K, (K−1)/K² S + σ² I)

    independent, with m, v and F estimated from public data (`moments`). The others hide u as noise does, in the
    directions in which they vary. `log_prob` takes the inverse by Woodbury's identity: one squared distance with a
    precision per entry, which is lazy for linear layers and a single example, and r inner products.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the standard deviation of the noise on each entry of the mean. Positive.
        clients: K ≥ 1, the clients behind g, the attacked one included.
        mean: m, (D,), the mean of the others' updates.
        variance: v, (D,), not negative: the diagonal part of their covariance.
        factor: F, (D, r), the low-rank part; None for r = 0.
    """

    has_rsample = True

    @classmethod
    def of(  # type: ignore[override]  # settings by name, as a constructor has them
        cls,
        update: Update,
        client: Client,
        batch_size: int,
        public: str | Tensor | None,
        sigma: float = 0.1,
        *,
        clients: int = 2,
        simulated: int = 200,
        directions: int = 20,
    ) -> Aggregated:
        """The channel among other clients of the same kind, whose updates are simulated on public images.

        Args:
            sigma: σ, the standard deviation of the noise on each entry of the mean. Positive.
            clients: how many share one mean, the attacked one included.
            simulated: updates of other clients that are simulated.
            directions: principal components of their covariance that are kept; the rest is taken entry by entry.
        """
        if public is None:
            raise BadInput("aggregation needs public images, on which the other clients' updates are simulated")
        mean, variance, factor = others(
            client, data.reference(public, client.input_shape), batch_size, simulated, directions
        )
        return cls(update, sigma, clients=clients, mean=mean, variance=variance, factor=factor)

    @classmethod
    def require(cls, *, sigma: float, clients: int, simulated: int, directions: int) -> None:  # type: ignore[override]
        require_positive(sigma=sigma)
        if not 1 <= clients <= MOST:
            raise BadInput(f"clients must be at least 1 (the attacked one) and at most {MOST:.0e}, not {clients}")
        if not 0 <= directions < simulated:
            raise BadInput(f"directions must be at least 0 and fewer than the {simulated} simulated updates, not "
                           f"{directions}")  # fmt: skip

    def __init__(
        self,
        update: Update,
        sigma: float,
        *,
        clients: int,
        mean: Tensor,
        variance: Tensor,
        factor: Tensor | None = None,
    ) -> None:
        if not isinstance(sigma, (int, float)):
            raise BadInput("the channel aggregated needs its sigma to be told: beside the spread of the other clients "
                           "one gradient hardly tells it")  # fmt: skip
        self.require(sigma=sigma, clients=clients, simulated=1, directions=0)
        if mean.shape != (update.size,) or variance.shape != (update.size,):
            raise BadInput(f"mean and variance must have shape ({update.size},), the update's, not "
                           f"{tuple(mean.shape)} and {tuple(variance.shape)}")  # fmt: skip
        if not (variance >= 0).all():
            raise BadInput("variance must not be negative")
        self.sigma, self.clients = sigma, clients
        others = clients - 1
        factor = mean.new_zeros(update.size, 0) if factor is None else factor
        # all in units of K g, where u itself is the mean: r = K g − (K−1) m − u
        self.shift = others * mean.double()
        self.spread = others * variance.double() + (clients * sigma) ** 2
        self.factor = math.sqrt(others) * factor.double()
        super().__init__(update, sigma=sigma, clients=clients, mean=mean, variance=variance, factor=factor)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        wide = torch.randn(*u.shape[:-1], self.factor.shape[-1], dtype=torch.float64, device=u.device)
        noise = self.spread.sqrt() * torch.randn_like(u, dtype=torch.float64) + wide @ self.factor.mT
        return (u + (self.shift + noise).to(u.dtype)) / self.clients

    def log_prob(self, value: Tensor) -> Tensor:
        precision = 1 / self.spread
        centred = self.clients * value.double() - self.shift
        weighted = precision[:, None] * self.factor  # Λ F
        capacitance = self.factor.mT @ weighted
        capacitance.diagonal().add_(1)
        cholesky = torch.linalg.cholesky(capacitance)
        square = self.sqdist(centred.to(value.dtype), precision)
        if weighted.shape[-1]:
            projected = self._project(centred, weighted, value.dtype)[..., None]
            seen = torch.linalg.solve_triangular(cholesky, projected, upper=False)
            square = square - seen.square().sum((-2, -1))
        log_det = self.spread.log().sum() + 2 * cholesky.diagonal().log().sum()
        scale = self.update.size * math.log(self.clients)  # the density of g, not of K g
        return scale - 0.5 * (square + log_det + self.update.size * math.log(2 * math.pi))

    def _project(self, centred: Tensor, weighted: Tensor, dtype: torch.dtype) -> Tensor:
        """(Λ F)ᵀ (centred − u), (*batch_shape, r), one lazy inner product a column."""
        if centred.dim() > 1:
            return (centred - self.update.materialise().double()) @ weighted
        inner = [self.update.inner(column) for column in weighted.mT.to(dtype)]
        return centred @ weighted - torch.stack(inner, -1)


@_simulated.remembered
def others(client: Client, public: Tensor, batch_size: int, simulated: int, directions: int) -> tuple[Tensor, ...]:
    """m, v and F of `moments`, from updates on random public images (N, *input_shape) with random labels."""
    Aggregated.require(sigma=1.0, clients=1, simulated=simulated, directions=directions)
    memory.require(
        4 * 8 * simulated * client.update_size, f"simulating {simulated} updates of other clients", "simulate fewer"
    )
    return moments(_simulated.updates(client, public, batch_size, simulated), directions)


def moments(updates: Tensor, rank: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """m (D,), v (D,) and F (D, rank) of simulated updates (N, D): mean and covariance, in float64.

    F holds the `rank` leading principal components; v what of every entry's variance they leave, so that the diagonal
    of S is that of the sample covariance.
    """
    if len(updates) < 2:
        raise BadInput(f"the others' distribution needs at least 2 simulated updates, got {len(updates)}")
    if not 0 <= rank < len(updates):
        raise BadInput(f"rank must lie between 0 and the number of simulated updates less one, not {rank}")
    mean = updates.double().mean(0)
    centred = updates.double() - mean
    _, strengths, directions = torch.linalg.svd(centred / math.sqrt(len(updates) - 1), full_matrices=False)
    factor = (strengths[:rank, None] * directions[:rank]).mT
    variance = centred.square().sum(0) / (len(updates) - 1) - factor.square().sum(1)
    return mean, variance.clamp(min=0), factor
