"""What all channels share: shapes, expansion over chains, and the sums that end in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pplleak.channels import _entrywise as entrywise
from pplleak.client import Client
from pplleak.client.update import DenseUpdate, Update
from pplleak.errors import BadInput, require_positive, unknown

Noise = Literal["gaussian", "laplace"]
Sigma = float | Tensor
INFER = "infer"  # a σ that nobody told: a latent of the model, with the prior log σ ~ Normal(log MEDIAN, WIDTH²)
MEDIAN, WIDTH = 0.01, 3.0  # nine tenths between 7e-5 and 1.4: weak beside the update_size entries that tell σ


class Channel(TorchDistribution):
    """p(g | u) as a Pyro distribution. A channel adds `log_prob`, and `rsample` or `sample`.

    Batch shape: the update's leading dimensions. Event shape: (D,), D = update_size.

    Args:
        update: u(x, y), as `client.update` returns it.
        settings: what else the constructor takes, by name: an expanded channel is built from them.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(self, update: Update, **settings: Any) -> None:
        self.update, self.settings = update, settings
        super().__init__(update.shape, torch.Size([update.size]))

    def expand(self, batch_shape: torch.Size, _instance: Channel | None = None) -> Channel:
        return type(self)(self.update.expand(torch.Size(batch_shape)), **self.settings)

    @classmethod
    def of(
        cls, update: Update, client: Client, batch_size: int, public: str | Tensor | None, **settings: Any
    ) -> Channel:
        """The channel that settings which can be written down give: here, what the constructor takes.

        One that takes tensors says in an `of` of its own how they follow from keyword-only settings, the client, the
        batch and `public`, images that the server has, (N, *input_shape) or by the name of a dataset.
        """
        return cls(update, **settings)

    @classmethod
    def require(cls, **settings: Any) -> None:
        """Raise BadInput for settings that no client's channel can have; all of them are given.

        One that takes tensors says in a `require` of its own what can be told without a client.
        """
        cls(DenseUpdate(torch.zeros(1, 1)), **settings)  # one entry is enough

    def updates(self, sample_shape: torch.Size) -> Tensor:
        """u as many times as there are draws, (*sample_shape, *batch_shape, D)."""
        u = self.update.materialise()
        return u.expand(*sample_shape, *u.shape)

    def sqdist(self, value: Tensor, precision: Tensor | None = None) -> Tensor:
        """Σ_i λ_i (g_i − u_i)², lazily for one observation; one a chain (`Predictive` under a plate) needs entries."""
        if value.dim() == 1:
            return self.update.sqdist(value, precision)
        residual = value.double() - self.update.materialise().double()
        return (residual.square() if precision is None else precision * residual.square()).sum(-1)

    def total(self, density: entrywise.Density, value: Tensor, *others: Tensor) -> Tensor:
        """Σ_i density(u_i, g_i, …) over the entries (`entrywise.total`), for what no sum over layers gives."""
        u = self.update.materialise()
        return entrywise.total(density, u.expand(np.broadcast_shapes(u.shape, value.shape)), value, *others)

    def entries(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """g and u in float64, for the densities that are no sum over entries either."""
        return value.double(), self.update.materialise().double()


def require_sigma(sigma: Sigma) -> None:
    """Raise BadInput for a σ that is not positive; a tensor of them is a model's own latent, and left to it."""
    if isinstance(sigma, str):
        raise BadInput(f"sigma must be a number here, not {sigma!r}: the model optimal can infer it from a gradient")
    if not isinstance(sigma, Tensor):
        require_positive(sigma=sigma)


def require_rate(rate: float) -> None:
    """Raise BadInput for a share of pruned entries outside [0, 1)."""
    if not 0 <= rate < 1:
        raise BadInput(f"rate must be at least 0 and below 1 (the share of entries that are pruned), not {rate}")


def require_each(**settings: Sequence[float]) -> None:
    """Raise BadInput unless each setting is one positive number, or one for each parameter of the network."""
    for name, numbers in settings.items():
        if not numbers:
            raise BadInput(f"{name} must be one number, or one for each parameter of the network: none is given")
        for number in numbers:
            require_positive(**{name: number})


def each(client: Client, name: str, given: Sequence[float]) -> Tensor:
    """A setting's one number for each of the client's parameter tensors, in the order of `client.layers`, (L,) in
    float64; a single number is that of all."""
    count = len(client.layers)
    if len(given) not in (1, count):
        raise BadInput(f"{len(given)} {name} for {count} parameters: give one for each of "
                       f"{', '.join(client.layers)}, or one for all")  # fmt: skip
    return torch.tensor(given, dtype=torch.float64, device=client.device).expand(count)


def require_choice(name: str, value: str, choices: Any) -> None:
    """Raise BadInput for a value that is not one of a Literal's."""
    if value not in get_args(choices):
        raise unknown(name, value, get_args(choices))


def per_chain(sigma: Sigma, like: Tensor) -> Tensor:
    """σ in float64, one number or one a chain."""
    return torch.as_tensor(sigma, dtype=torch.float64, device=like.device)


def per_entry(sigma: Sigma, like: Tensor) -> Tensor:
    """σ in the precision of `like`, shaped to multiply entries (*chains, D)."""
    return torch.as_tensor(sigma, dtype=like.dtype, device=like.device)[..., None]


def noise(kind: Noise, u: Tensor, sigma: Sigma) -> Tensor:
    """Independent draws of mean 0 and standard deviation σ, in the shape of u."""
    if kind == "gaussian":
        return per_entry(sigma, u) * torch.randn_like(u)
    uniform = 1 - 2 * torch.rand_like(u, dtype=torch.float64)  # in (-1, 1]: the far side is one in 2⁵³
    standard = -uniform.sign() * torch.log1p(-uniform.abs().clamp(max=1 - 2**-53)) / math.sqrt(2)
    return per_entry(sigma, u) * standard.to(u.dtype)


def noise_log_prob(kind: Noise, residual: Tensor, sigma: Tensor) -> Tensor:
    """log p(g_i − u_i) per entry, float64; `noise` draws from it. σ is the standard deviation of both kinds."""
    if kind == "gaussian":
        return -0.5 * (residual / sigma).square() - (sigma.log() + 0.5 * math.log(2 * math.pi))
    return -math.sqrt(2) * residual.abs() / sigma - (sigma.log() + 0.5 * math.log(2))


def distance(u: Tensor, g: Tensor) -> Tensor:
    """|g_i − u_i| per entry."""
    return (g - u).abs()


def laplace_log_prob(l1: Tensor, sigma: Tensor, size: float | Tensor) -> Tensor:
    """Σ log p(g_i − u_i) over `size` entries of Laplace noise, from ‖g − u‖₁ (*chains,); σ is a standard deviation."""
    return -math.sqrt(2) * l1 / sigma - size * (sigma.log() + 0.5 * math.log(2))


def log_interval(low: Tensor, high: Tensor) -> Tensor:
    """log [Φ(high) − Φ(low)] for low < high, accurate however far out in a tail the interval lies.

    Mirrored so that the end nearer to the middle is the upper one; then
    log Φ(high) + log(1 − Φ(low) / Φ(high)), with both cdfs as logarithms.
    """
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    below, above = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return above + torch.log(-torch.expm1(below - above))
