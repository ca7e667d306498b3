"""The percentile filter of federated frameworks: the largest entries are sent, cut off at a bound."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pplleak.channels._base import Channel, Sigma, log_interval, noise_log_prob, per_chain, require_rate, require_sigma
from pplleak.client.update import Update
from pplleak.errors import BadInput, require_positive

NODES = 48
BELOW, ABOVE = 8.0, 5.0  # where the least of many entries lies about the least u, in units of σ
CLOSE = 1e-6  # of the bound: an entry that is nearer to it than float32 tells is on it


class Percentile(Channel):
    """v = u + σ ε,  g_i = v_i for the k largest |v_i|, cut off to [−γ, γ], and 0 elsewhere;  k = D − round(rate D).

    As for `topk`, the support S is seen, and no entry outside of it is larger than t = min over S of |g_i|. One that is
    on the bound is known to lie beyond it:

        log p(g | u) = Σ_{i ∈ S, |g_i| < γ} log Normal(g_i; u_i, σ²)
                     + Σ_{i ∈ S, |g_i| = γ} log Φ((sign(g_i) u_i − γ) / σ)
                     + Σ_{i ∉ S} log [Φ((t − u_i) / σ) − Φ((−t − u_i) / σ)]

    a density with respect to Lebesgue measure and unit point masses at ±γ on the k entries sent. It needs entries.
    Where all that was sent is on the bound, t lies beyond it and is summed out:

        p(g | u) = ∫_γ^∞ h(t) Π_{i ∈ S} Φ((sign(g_i) u_i − t) / σ) Π_{i ∉ S} [Φ((t − u_i) / σ) − Φ((−t − u_i) / σ)] dt

    with h(t) = −d/dt Σ_{i ∈ S} log Φ((sign(g_i) u_i − t) / σ): by Gauss-Laguerre quadrature in h(γ) (t − γ) or, where
    all of S lies far beyond γ, by Gauss-Legendre quadrature around the least of it.

    Source: Shokri & Shmatikov 2015, Privacy-preserving deep learning (the share of the largest gradients, in a range
    [−γ, γ]); NVIDIA FLARE's `PercentilePrivacy` is it with σ = 0.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the noise's standard deviation per entry, in the gradient's own units. Positive.
        rate: the share of entries that are dropped, in [0, 1): FLARE's percentile / 100.
        bound: γ, in the gradient's own units. Positive.
    """

    def __init__(self, update: Update, sigma: Sigma = 0.1, *, rate: float = 0.1, bound: float = 1.0) -> None:
        require_sigma(sigma)
        require_rate(rate)
        require_positive(bound=bound)
        self.sigma, self.bound, self.k = sigma, bound, max(1, update.size - round(rate * update.size))
        super().__init__(update, sigma=sigma, rate=rate, bound=bound)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        v = u + per_chain(self.sigma, u).to(u.dtype)[..., None] * torch.randn_like(u)
        sent = v.abs().topk(self.k, -1).indices
        return torch.zeros_like(v).scatter(-1, sent, v.gather(-1, sent).clamp(-self.bound, self.bound))

    def log_prob(self, value: Tensor) -> Tensor:
        size, edge = value.double().abs(), self.bound * (1 - CLOSE)
        sent = value != 0
        if not (sent.sum(-1) == self.k).all() or not (size <= self.bound * (1 + CLOSE)).all():
            raise BadInput(f"the observation is none of a filter that sends {self.k} of {self.update.size} entries, "
                           f"none beyond ±{self.bound:g}: set rate and bound, or believe in another channel"
                           )  # fmt: skip
        t = torch.where(sent, size, math.inf).amin(-1, keepdim=True)
        sigma = per_chain(self.sigma, value)[..., None]

        seen, hidden = self._cut_at(self.bound, t, value, sigma), t[..., 0] >= edge
        return torch.where(hidden, self._all_cut(value, sigma), seen) if hidden.any() else seen

    def _cut_at(self, cut: float | Tensor, t: Tensor, value: Tensor, sigma: Tensor) -> Tensor:
        """log p of what was sent, of which those on the bound lie beyond `cut`, and of the rest within [−t, t]."""

        def density(u: Tensor, g: Tensor) -> Tensor:
            on = g.abs() >= self.bound * (1 - CLOSE)
            sent = torch.where(on, self._beyond(u, g, cut, sigma), noise_log_prob("gaussian", g - u, sigma))
            return torch.where(g != 0, sent, log_interval((-t - u) / sigma, (t - u) / sigma))

        return self.total(density, value)

    @staticmethod
    def _beyond(u: Tensor, g: Tensor, t: float | Tensor, sigma: Tensor) -> Tensor:
        """log P(sign(g_i) v_i > t)."""
        return torch.special.log_ndtr((g.sign() * u - t) / sigma)

    def _all_cut(self, value: Tensor, sigma: Tensor) -> Tensor:
        """log p(g | u) where t is not seen."""

        def hazard(t: float | Tensor) -> Tensor:
            def entry(u: Tensor, g: Tensor) -> Tensor:
                ratio = noise_log_prob("gaussian", g.sign() * u - t, sigma) - self._beyond(u, g, t, sigma)
                return torch.where(g != 0, ratio.exp(), 0.0)

            return self.total(entry, value)

        terms = []
        for t, log_weight in self._thresholds(hazard(self.bound).detach(), value, sigma[..., 0]):
            terms.append(
                log_weight + self._cut_at(t[..., None], t[..., None], value, sigma) + hazard(t[..., None]).log()
            )
        return torch.stack(terms).logsumexp(0)

    def _thresholds(self, rate: Tensor, value: Tensor, sigma: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Nodes t (*chains,) and the logarithms of their weights: around the least of what was sent, with which they
        move, where that lies beyond the bound and h is next to nothing there; else from the bound on, as fast as h
        falls."""
        g, u = self.entries(value)
        least = torch.where(g != 0, g.sign() * u, math.inf).amin(-1)
        near = least <= self.bound + sigma
        rate = torch.where(near, rate, 1.0)
        start, end = (least - BELOW * sigma).clamp(min=self.bound), least + ABOVE * sigma
        half = (end - start) / 2
        for (x, log_w), (v, log_v) in zip(_laguerre(), _legendre(), strict=True):
            t = torch.where(near, self.bound + x / rate, (start + end) / 2 + v * half)
            yield t, torch.where(near, log_w + x - rate.log(), log_v + half.log())


@functools.cache
def _laguerre(nodes: int = NODES) -> list[tuple[float, float]]:
    """Nodes x and the logarithms of the weights w of ∫₀^∞ e^−x f(x) dx ≈ Σ w f(x)."""
    x, w = np.polynomial.laguerre.laggauss(nodes)
    return list(zip(x.tolist(), np.log(w).tolist(), strict=True))


@functools.cache
def _legendre(nodes: int = NODES) -> list[tuple[float, float]]:
    """Nodes x and the logarithms of the weights w of ∫ f(x) dx ≈ Σ w f(x) from −1 to 1."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return list(zip(x.tolist(), np.log(w).tolist(), strict=True))
