"""The direction of the update alone: the likelihood behind cosine matching."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from pplleak.channels._base import Channel
from pplleak.client.update import Update
from pplleak.errors import require_positive


class Directional(Channel):
    """g / ‖g‖ ~ von Mises-Fisher(u / ‖u‖, κ) on the unit sphere of D dimensions.

        log p(g | u) = log C_D(κ) + κ ⟨g, u⟩ / (‖g‖ ‖u‖)
        log C_D(κ) = (D/2 − 1) log κ − (D/2) log 2π − log I_{D/2−1}(κ)

    (Mardia and Jupp 2000, section 9.3.2), a density with respect to the sphere's surface measure. The norm of g says
    nothing of u: `sample` shares unit vectors, and `log_prob` takes a g of any norm for its direction. (With a norm
    r of any law p(r) that does not depend on u, the density of g on R^D would be this one times p(r) / r^(D−1): a
    constant to the adversary.) Cosine matching (Geiping et al. 2020) maximises this log-density. The cosine of g and u
    has mean I_{D/2}(κ) / I_{D/2−1}(κ), roughly κ / (D/2 + √(D²/4 + κ²)). Lazy: an inner product and a norm.

    Args:
        update: u(x, y), as `client.update` returns it.
        kappa: κ, the concentration. Positive; of the order of D where directions are to agree.
    """

    def __init__(self, update: Update, *, kappa: float = 1e4) -> None:
        require_positive(kappa=kappa)
        self.kappa = kappa
        super().__init__(update, kappa=kappa)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        axis = u.double() / u.double().norm(dim=-1, keepdim=True)
        one_minus = _one_minus_cosines(self.update.size, self.kappa, u[..., :1])
        across = torch.randn_like(axis)
        across = across - (across * axis).sum(-1, keepdim=True) * axis
        across = across / across.norm(dim=-1, keepdim=True)
        return ((1 - one_minus) * axis + (one_minus * (2 - one_minus)).sqrt() * across).to(u.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if value.dim() == 1:
            inner = self.update.inner(value)
        else:  # one observation a chain (`Predictive` under a plate): entries are needed
            g, u = self.entries(value)
            inner = (g * u).sum(-1)
        smallest = torch.finfo(torch.float64).tiny  # a zero update has no direction: its cosine is 0
        norms = (value.double().square().sum(-1) * self.update.sqnorm()).clamp(min=smallest).sqrt()
        return log_normaliser(self.update.size, self.kappa) + self.kappa * inner / norms


def _one_minus_cosines(dim: int, kappa: float, like: Tensor) -> Tensor:
    """Draws of 1 − cos(g, u), in float64 and the shape of `like`, by rejection (Wood 1994, algorithm VM*)."""
    half = (dim - 1) / 2
    b = half / (kappa + math.hypot(kappa, half))
    x = (1 - b) / (1 + b)
    constant = kappa * x + (dim - 1) * math.log1p(-(x**2))
    beta = torch.distributions.Beta(torch.tensor(half, dtype=torch.float64), torch.tensor(half, dtype=torch.float64))
    found = torch.empty(like.shape, dtype=torch.float64)
    todo = torch.ones(like.shape, dtype=torch.bool)
    while todo.any():
        z = beta.sample(torch.Size([int(todo.sum())]))
        gap = 2 * b * z / (1 - (1 - b) * z)  # 1 − w, without the difference of two numbers near 1
        accepted = kappa * (1 - gap) + (dim - 1) * torch.log1p(-x * (1 - gap)) - constant >= torch.rand_like(z).log()
        at = todo.nonzero(as_tuple=True)
        kept = tuple(i[accepted] for i in at)
        found[kept] = gap[accepted]
        todo[kept] = False
    return found.to(like.device)


@lru_cache(maxsize=64)
def log_normaliser(dim: int, kappa: float) -> float:
    """log C_D(κ), see `Directional`."""
    order = dim / 2 - 1
    return order * math.log(kappa) - dim / 2 * math.log(2 * math.pi) - log_bessel_i(order, kappa)


def log_bessel_i(order: float, x: float) -> float:
    """log I_ν(x) for ν ≥ −1/2 and x > 0, without overflow.

    From ν = 30 on by the uniform expansion (DLMF 10.41.3) up to ν⁻⁴; below by scipy's scaled Bessel function.
    """
    if order < 30:
        from scipy.special import ive  # where it is used: scipy takes longer to import than a density to compute

        scaled = float(ive(order, x))
        if scaled > 1e-290:
            return math.log(scaled) + x
        # so small an x that only the first terms of the series in x²/4 (DLMF 10.25.2) are left
        return order * math.log(x / 2) - math.lgamma(order + 1) + math.log1p(x**2 / 4 / (order + 1))
    z = x / order
    root = math.hypot(1, z)
    p = 1 / root
    eta = root + math.log(z / (1 + root))
    u1 = (3 * p - 5 * p**3) / 24
    u2 = (81 * p**2 - 462 * p**4 + 385 * p**6) / 1152
    u3 = (30375 * p**3 - 369603 * p**5 + 765765 * p**7 - 425425 * p**9) / 414720
    u4 = (4465125 * p**4 - 94121676 * p**6 + 349922430 * p**8 - 446185740 * p**10 + 185910725 * p**12) / 39813120
    series = u1 / order + u2 / order**2 + u3 / order**3 + u4 / order**4
    return order * eta - 0.5 * math.log(2 * math.pi * order) - 0.5 * math.log(root) + math.log1p(series)
