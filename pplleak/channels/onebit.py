"""One bit an entry with error feedback: signs and their scale, of the update and what earlier rounds left unsent."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pplleak import data, memory
from pplleak.channels import _simulated
from pplleak.channels._base import Channel, Sigma, noise, per_chain, require_sigma
from pplleak.client import Client
from pplleak.client.update import Update
from pplleak.errors import BadInput, printable

ALIKE = 1e-5  # relative, between the sizes of entries: single precision
FAR = -25.0  # below it, a normal tail is taken from its series: the closed forms cancel
STEPS = 60  # of Newton's, at most; a few do, from anywhere: Λ' is convex


class OneBit(Channel):
    """g = s sign(p),  s = ‖p‖₁ / D,  p = u + e + σ ε,  ε ~ Normal(0, I):  D bits and one number.

    e is the residual, what earlier rounds left unsent: e ← p − s sign(p) after each of them, 0 before the first. The
    client alone knows it. The server believes e ~ Normal(m, diag(v)), independent, from clients that it simulates on
    public images (`residuals`); in the first round m = v = 0, and this is `sign` with a scale. Given that belief,
    with τ² = σ² + v and what each entry says of itself, c_i = sign(g_i) (u_i + m_i),

        E[exp(t |p_i|); sign(p_i) = sign(g_i)] = exp(t c_i + t² τ_i² / 2) Φ(c_i / τ_i + t τ_i)

    at t = 0 the probit likelihood of the signs, exact. The scale is a sum of D terms that are independent given the
    signs; its density is that of the saddle point (Daniels 1954), with a relative error of order 1/D:

        Λ(t) = Σ_i t c_i + t² τ_i² / 2 + log Φ(c_i / τ_i + t τ_i)          Λ'(t̂) = D s
        log p(g | u) = Λ(t̂) − t̂ D s − ½ log 2π Λ''(t̂) + log D

    It needs entries. Real residuals are neither normal nor independent; `benchmarks/compressed.py` measures what that
    costs.

    Source: Seide et al. 2014 (1-bit SGD with error feedback); Karimireddy et al. 2019, algorithm 1 (EF-SignSGD: this
    scale, one for the whole update). The likelihood is this file's own.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the standard deviation of the noise before the sign is taken, per entry. Positive.
        mean: m, (D,). variance: v, (D,), not negative: of the residual, as the server believes.
    """

    @classmethod
    def of(  # type: ignore[override]  # settings by name, as a constructor has them
        cls,
        update: Update,
        client: Client,
        batch_size: int,
        public: str | Tensor | None,
        sigma: float = 0.1,
        *,
        rounds: int = 10,
        simulated: int = 100,
    ) -> OneBit:
        """The channel of a client whose residual is that of clients on public images, at the same weights.

        Args:
            sigma: σ, the standard deviation of the noise before the sign is taken, per entry. Positive.
            rounds: earlier rounds, of which a residual is left; 0: this is the first one.
            simulated: clients whose residuals tell its mean and variance.
        """
        if not rounds:
            nothing = torch.zeros(update.size, dtype=torch.float64, device=client.device)
            return cls(update, sigma, mean=nothing, variance=nothing)
        if public is None:
            raise BadInput("error feedback needs public images, on which earlier rounds are simulated: or set rounds "
                           "to 0, the first round")  # fmt: skip
        mean, variance = believed(client, data.reference(public, client.input_shape), batch_size, rounds, simulated)
        return cls(update, sigma, mean=mean, variance=variance)

    @classmethod
    def require(cls, *, sigma: Sigma, rounds: int, simulated: int) -> None:  # type: ignore[override]
        require_sigma(sigma)
        if rounds < 0:
            raise BadInput(f"rounds must be at least 0 (the first round), not {printable(rounds)}")
        if simulated < 2:
            raise BadInput(f"simulated must be at least 2, whose residuals have a variance, not {printable(simulated)}")

    def __init__(self, update: Update, sigma: Sigma, *, mean: Tensor, variance: Tensor) -> None:
        require_sigma(sigma)
        if mean.shape != (update.size,) or variance.shape != (update.size,):
            raise BadInput(f"mean and variance must have shape ({update.size},), the update's, not "
                           f"{tuple(mean.shape)} and {tuple(variance.shape)}")  # fmt: skip
        if not (variance >= 0).all():
            raise BadInput("variance must not be negative")
        self.sigma, self.shift = sigma, mean.double()
        self.spread = per_chain(sigma, variance)[..., None].square() + variance.double()  # τ², one a chain, too
        super().__init__(update, sigma=sigma, mean=mean, variance=variance)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        p = u + self.shift.to(u) + self.spread.sqrt().to(u) * noise("gaussian", u, 1.0)
        return compressed(p)

    def log_prob(self, value: Tensor) -> Tensor:
        size = value.detach().abs().double()
        scale = size.mean(-1, keepdim=True)
        if not ((scale > 0) & ((size - scale).abs() <= ALIKE * scale)).all():
            raise BadInput("the observation does not consist of signs times one scale: believe in another channel")
        g, u = self.entries(value)
        c, tau, total = g.sign() * (u + self.shift), self.spread.sqrt(), g.shape[-1] * scale
        c, total = torch.broadcast_tensors(c, total)[0], total.expand(*torch.broadcast_shapes(c.shape, g.shape)[:-1], 1)
        with torch.no_grad():
            t = torch.zeros_like(total)
            for _ in range(STEPS):
                step = _newton(t, c, tau, total)
                t = t + step
                if not (step.abs() > 1e-12 * (1 + t.abs())).any():
                    break
        if c.requires_grad or tau.requires_grad:  # t̂'s own first and second derivative
            t = t + _newton(t, c, tau, total)
            t = t + _newton(t, c, tau, total)
        a = c / tau + t * tau
        curvature = (tau.square() * _variance(a)).sum(-1)
        first = _cumulant(t, c, tau).sum(-1) - (t * total)[..., 0]
        return first - 0.5 * (2 * math.pi * curvature).log() + math.log(g.shape[-1])


def compressed(p: Tensor) -> Tensor:
    """s sign(p), s = ‖p‖₁ / D, of (…, D)."""
    return torch.where(p < 0, -1.0, 1.0).to(p) * p.abs().mean(-1, keepdim=True)


def residuals(updates: Iterable[Tensor]) -> Tensor:
    """e (…, D), what is left unsent after rounds with these updates u, each (…, D):  p = u + e,  e ← p − s sign(p)."""
    left: Tensor | float = 0.0
    for u in updates:
        p = u + left
        left = p - compressed(p)
    if not isinstance(left, Tensor):
        raise BadInput("a residual is left by at least one round")
    return left


@_simulated.remembered
def believed(client: Client, public: Tensor, batch_size: int, rounds: int, simulated: int) -> tuple[Tensor, Tensor]:
    """m and v (D,), float64: of the residuals of `simulated` clients after `rounds` rounds on random public images."""
    memory.require(4 * 8 * simulated * client.update_size, f"simulating {simulated} other clients", "simulate fewer")
    left = residuals(_simulated.updates(client, public, batch_size, simulated, seed=k) for k in range(rounds)).double()
    return left.mean(0), left.var(0)


def _newton(t: Tensor, c: Tensor, tau: Tensor, total: Tensor) -> Tensor:
    """(D s − Λ'(t)) / Λ''(t), (…, 1)."""
    a = c / tau + t * tau
    return (total - (tau * _mean(a)).sum(-1, keepdim=True)) / (tau.square() * _variance(a)).sum(-1, keepdim=True)


def _cumulant(t: Tensor, c: Tensor, tau: Tensor) -> Tensor:
    """t c + t² τ² / 2 + log Φ(a), a = c/τ + tτ; far out as (a² − c²/τ²) / 2 + log Φ(a), whose a²/2 cancels."""
    a = c / tau + t * tau
    far, r = _far(a)
    mills = torch.log1p(-r * (1 - r * (3 - r * (15 - 105 * r)))) - torch.log(-far * math.sqrt(2 * math.pi))
    near = t * c + 0.5 * (t * tau).square() + torch.special.log_ndtr(a.clamp(min=FAR))
    return torch.where(a > FAR, near, mills - 0.5 * (c / tau).square())


def _mean(a: Tensor) -> Tensor:
    """a + h, h = φ(a) / Φ(a): the mean of a + z given that it is positive, z ~ Normal(0, 1)."""
    near, (far, r) = a.clamp(min=FAR), _far(a)
    return torch.where(a > FAR, near + _hazard(near), -(1 - r * (2 - r * (10 - r * (74 - 706 * r)))) / far)


def _variance(a: Tensor) -> Tensor:
    """1 − a h − h², its variance."""
    near, (_, r) = a.clamp(min=FAR), _far(a)
    h = _hazard(near)
    return torch.where(a > FAR, 1 - near * h - h.square(), r * (1 - r * (6 - r * (50 - r * (518 - 6354 * r)))))


def _far(a: Tensor) -> tuple[Tensor, Tensor]:
    """a and 1/a² where a is far out, for the series of Mills' ratio; the edge elsewhere."""
    far = a.clamp(max=FAR)
    return far, far.square().reciprocal()


def _hazard(a: Tensor) -> Tensor:
    """φ(a) / Φ(a), of a no farther out than that."""
    return torch.exp(-0.5 * a.square() - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(a))
