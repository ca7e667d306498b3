"""The sparse vector technique of federated frameworks: entries that pass a noisy threshold are sent with noise."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pplleak.channels import _entrywise as entrywise
from pplleak.channels import _gathered as gathered
from pplleak.channels._base import Channel, noise
from pplleak.channels._coverings import log_coverings
from pplleak.client.update import Update
from pplleak.errors import BadInput, require_positive

PASSES = 16  # after so many, every entry has passed; NVIDIA FLARE goes on for as long as it takes
COUNTED = 16  # entries up to which the number that has passed is counted exactly, and not as a normal variable
INNER, OUTER, MARKS = 4, 12, 10  # nodes of the threshold between its kinks and beyond them; of the mark
FAR = 20.0  # nats below a peak that are no longer looked at
GRID = 32  # places at which the peak is looked for, within those of the last look
NEVER = 1e-14  # the probability that another pass was needed, below which none is looked at
TOGETHER = 2**14  # entries, over chains and thresholds, up to which several thresholds are one operation
ERROR = 1e-11  # of a sum over entries, relative to the largest, that is made by fewer nodes
FEWER = 4  # entries a node stands for, at least
TINY = 1e-300


class SVT(Channel):
    """n entries whose noisy size passes a noisy threshold are sent, cut off to ±γ and with noise; 0 elsewhere.

        T = τ + Laplace(γ / ε₁)                                      one threshold for all entries
        i passes as soon as |c_i| + Laplace(2 γ n / ε₂) ≥ T,  c_i = max(−γ, min(γ, u_i)),  n = ⌈share D⌉
        g_i = c_i + Laplace(2 γ / ε₃) on n entries out of those that have passed, drawn once n have, and 0 elsewhere

    with ε₁ : ε₂ = 1 : (2n)^⅔ and ε₁ + ε₂ = ε (Lyu, Su & Li 2017). Passes over all entries are repeated until n have
    passed. The threshold, the passes and what has passed unsent are latents:

        p(g | u) = Π_{i ∈ S} Laplace(g_i; c_i, 2 γ / ε₃)  E_T Σ_m P(S sent, m passes | u, T)

    With q_i the probability to pass within m passes, n of A drawn at random are those of the smallest of |A| uniform
    marks, of which x is the largest (∫ n x^{n−1} (1 − x)^{|A| − n} dx), so that entries are independent given x:

        P(S sent, N_m ≥ n | u, T) = ∫ n x^{n−1} Π_{i ∈ S} q_i Π_{i ∉ S} (1 − x q_i) dx

    and drawn with replacement, |A|^−n = ∫ t^{n−1} e^{−t|A|} dt / Γ(n) and x = 1 − e^−t, times the number of ways in
    which n draws cover S. That N_{m−1} < n is a Poisson-binomial probability, which is counted for small updates and
    normal for others. T and x are integrated by quadrature. A density with respect to Lebesgue measure on what is sent.

    Source: NVIDIA FLARE 2.9, `nvflare.app_common.filters.svt_privacy.SVTPrivacy`:

        lambda_rho = self.gamma / epsilon_threshold;  threshold = self.tau + np.random.laplace(scale=lambda_rho)
        noisy_response += np.random.laplace(scale=lambda_nu, size=…);  above_threshold = noisy_response >= threshold
        selected_values = (np.clip(selected_values, -self.gamma, self.gamma) + noise) * total_steps

    Args:
        update: u(x, y), as `client.update` returns it; FLARE's is divided by its number of steps.
        share: of the entries that are sent, in (0, 1]: FLARE's fraction.
        epsilon: ε of choosing them. Positive.
        noise_var: ε₃, of an entry that is sent: FLARE's name for it. Positive.
        gamma: γ, the bound, in the gradient's own units. Positive.
        tau: τ, the threshold before noise, in the gradient's own units.
        replace: draw those that are sent with replacement, as FLARE does unless told otherwise: then fewer are sent.
    """

    def __init__(
        self,
        update: Update,
        *,
        share: float = 0.1,
        epsilon: float = 0.1,
        noise_var: float = 0.1,
        gamma: float = 1e-5,
        tau: float = 1e-6,
        replace: bool = True,
    ) -> None:
        require_positive(share=share, epsilon=epsilon, noise_var=noise_var, gamma=gamma)
        if share > 1:
            raise BadInput(f"share must be at most 1 (of the entries that are sent), not {share}")
        if not math.isfinite(tau):
            raise BadInput(f"tau must be a number, not {tau}")
        self.n, self.gamma, self.tau, self.replace = math.ceil(share * update.size), gamma, tau, replace
        odds = (2 * self.n) ** (2 / 3)
        self.threshold_scale = gamma * (1 + odds) / epsilon
        self.query_scale = 2 * gamma * self.n * (1 + odds) / (odds * epsilon)
        self.scale = 2 * gamma / noise_var
        super().__init__(update, share=share, epsilon=epsilon, noise_var=noise_var, gamma=gamma, tau=tau,
                         replace=replace)  # fmt: skip

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape).double()
        flat = u.reshape(-1, u.shape[-1])
        size = flat.abs().clamp(max=self.gamma)
        threshold = self.tau + self.threshold_scale * _laplace(flat[:, :1])
        passed = torch.zeros_like(flat, dtype=torch.bool)
        for number in range(1, PASSES + 1):
            short = passed.sum(-1, keepdim=True) < self.n
            now = size + self.query_scale * _laplace(flat) >= threshold
            passed |= short & (now if number < PASSES else torch.ones_like(now))
        sent = torch.zeros_like(passed)
        picked = passed.double().multinomial(self.n, self.replace)
        sent.scatter_(-1, picked, torch.ones_like(picked, dtype=torch.bool))
        g = flat.clamp(-self.gamma, self.gamma) + self.scale * _laplace(flat)
        return torch.where(sent, g, 0.0).reshape(u.shape).to(self.updates(torch.Size()).dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        sent = value != 0
        counts = sent.sum(-1)
        fits = (counts >= 1) & (counts <= self.n) if self.replace else counts == self.n
        if not fits.all():
            raise BadInput(f"the observation is none of a filter that sends {self.n} of {self.update.size} entries: "
                           "set share, or believe in another channel")  # fmt: skip
        g, u = self.entries(value)
        u = u.expand(np.broadcast_shapes(u.shape, g.shape))
        c = u.clamp(-self.gamma, self.gamma)
        kept = sent.double()
        released = -(kept * (g - c).abs()).sum(-1) / self.scale - counts * math.log(2 * self.scale)
        entries = self._entries(c.abs(), kept)
        terms = [
            weight + self._sent(threshold, size, own, many)
            for inside in (False, True)
            for threshold, weight, size, own, many in self._parts(*entries, inside)
        ]
        total = released + torch.cat(terms).logsumexp(0)
        return total + torch.as_tensor(log_coverings(self.n), device=u.device).take(counts) if self.replace else total

    def _thresholds(self) -> tuple[list[float], list[float]]:
        """Nodes of T and the logarithms of their weights under Laplace(τ, γ/ε₁): beyond all kinks on either side, and
        between them; the prior has its own at τ, and what passes at |c_i| in [0, γ]."""
        edges, scale = sorted({0.0, self.gamma, self.tau}), self.threshold_scale
        s, log_w = _laguerre(OUTER)
        nodes: list[tuple[float, float]] = []
        for edge, side in ((edges[0], -1), (edges[-1], 1)):
            beyond = -abs(edge - self.tau) / scale - math.log(2)
            nodes += [(edge + side * scale * a, beyond + b) for a, b in zip(s, log_w, strict=True)]
        x, w = _legendre(INNER)
        for low, high in itertools.pairwise(edges):
            for a, b in zip(x, w, strict=True):
                t = low + (high - low) * a
                nodes.append((t, math.log(b * (high - low) / (2 * scale)) - abs(t - self.tau) / scale))
        return [t for t, _ in nodes], [w for _, w in nodes]

    def _entries(self, size: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Sizes |c_i|, which of them are sent, how many there are of each, and nodes a piece: the entries (0 nodes), or
        fewer that stand for them (`_gathered`): nodes between kinks at all thresholds, and weights of both kinds."""
        reach = 2 * math.pi * self.query_scale / (PASSES * self.gamma)  # log(1 − x q) of all passes is smooth so far
        count = gathered.nodes_for(reach, ERROR)
        if 4 * count > size.shape[-1] / FEWER:
            return size, kept, torch.ones_like(size), 0
        kinds = torch.stack([kept, 1 - kept], -2).expand(*size.shape[:-1], 2, size.shape[-1])
        inside = [t for t in self._thresholds()[0] if 0 < t < self.gamma]
        nodes, many = gathered.gather(size, kinds, sorted({0.0, *inside, self.gamma}), count)
        return nodes, kept, many, count

    def _parts(
        self, size: Tensor, kept: Tensor, many: Tensor, count: int, inside: bool
    ) -> Iterator[tuple[Tensor, ...]]:
        """Thresholds (t, *1, 1), those within [0, γ] or those beyond, with the logarithms of their weights (t, *1), and
        sizes, what is sent, how many: of the `_entries` by the kink at each threshold. As many at a time as are one
        operation."""
        nodes = [(t, w) for t, w in zip(*self._thresholds(), strict=True) if (0 < t < self.gamma) == inside]
        if not nodes:
            return
        own = kept
        if count:
            edges = [[0.0, t, self.gamma] for t, _ in nodes] if inside else [[0.0, self.gamma]]
            fewer = [gathered.coarser(size, many, e, count) for e in edges]
            own = torch.ones_like(fewer[0][0])
            own = torch.cat([own, 0 * own])
            many = torch.stack([weights.flatten(-2) for _, weights in fewer])
            size = torch.stack([torch.cat([s, s]).expand(many.shape[1:]) for s, _ in fewer])
        else:
            size, many = size[None], many[None]
        size, many = (v.expand(len(nodes), *v.shape[1:]) for v in (size, many))
        t, w = (torch.tensor(v, dtype=size.dtype, device=size.device).reshape(-1, *[1] * (size.dim() - 2))
                for v in zip(*nodes, strict=True))  # fmt: skip
        together = max(1, TOGETHER // many[0].numel())  # a small update costs its operations, a large one its entries
        for part in zip(*(v.split(together) for v in (t[..., None], w, size, many)), strict=True):
            yield *part[:3], own, part[3]

    def _sent(self, threshold: Tensor, size: Tensor, kept: Tensor, many: Tensor) -> Tensor:
        """log P(S sent | u, T), (thresholds, *chains), of thresholds T, (thresholds, *1, 1); of draws with replacement
        less the ways in which they cover S. Of entries of `size` (thresholds, *chains, entries), `many` of each; those
        that `kept` marks are sent."""
        above = (threshold - size) / self.query_scale
        far = above.abs().neg().exp() / 2
        miss = torch.where(above > 0, torch.log1p(-far), -above.abs() - math.log(2))  # log P(not within one pass)
        terms = []
        for number in range(1, PASSES + 1):
            before = -torch.expm1((number - 1) * miss)
            if number > 1 and not (self._fewer(before.detach(), many.detach()) > NEVER).any():
                break
            within = -torch.expm1(number * miss) if number < PASSES else torch.ones_like(miss)
            x, log_w = self._marks(within.detach(), kept, many.detach())
            x = x[..., None]
            unsent = entrywise.total(_unsent, within.expand(len(x), *within.shape), (1 - kept) * many, x)
            term = log_w + unsent + (kept * many * within.log()).sum(-1)
            if number > 1 or self.replace:
                hidden = torch.where(kept > 0, 1.0, (1 - x) / (1 - x * within).clamp(min=TINY))  # of P(passed | unsent)
                enough = torch.ones_like(term)
                if self.replace:  # else the n that were sent have passed
                    enough = 1 - self._fewer(torch.where(kept > 0, 1.0, hidden * within), many)
                if number > 1:
                    passed = torch.where(kept > 0, before / within, hidden * before)
                    enough = enough - 1 + self._fewer(passed, many)
                term = term + enough.clamp(min=TINY).log()
            terms.append(term.logsumexp(0))
        return torch.stack(terms).logsumexp(0)

    def _marks(self, within: Tensor, kept: Tensor, many: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes of the mark x and the logarithms of their weights, (nodes, *chains): where the integrand, of entries
        that all pass with their mean probability, lies within `FAR` of its peak."""
        sent, rest = ((m * many).sum(-1).expand(within.shape[:-1]) for m in (kept, 1 - kept))
        mean = ((1 - kept) * many * within).sum(-1) / rest.clamp(min=1)

        def height(x: Tensor) -> Tensor:
            return self._mark_log_prob(x, sent) + rest * torch.log1p(-(x * mean).clamp(max=1 - TINY))

        low, high = torch.zeros_like(mean), torch.ones_like(mean)
        steps = torch.arange(1, GRID, dtype=mean.dtype, device=mean.device).reshape(-1, *[1] * mean.dim()) / GRID
        few = self.update.size <= 2 * MARKS and not self.replace  # a polynomial: that many nodes are exact
        for _ in range(0 if few else 3):  # each look is up to GRID / 2 times as near as the last
            grid, gap = low + (high - low) * steps, (high - low) / GRID
            heights = height(grid)
            near = heights > heights.amax(0) - FAR
            low, high = torch.where(near, grid, 1.0).amin(0) - gap, torch.where(near, grid, 0.0).amax(0) + gap
        nodes, weights = (torch.as_tensor(v, dtype=within.dtype, device=within.device).reshape(-1, *[1] * sent.dim())
                          for v in _legendre((self.update.size + 1) // 2 if few else MARKS))  # fmt: skip
        x = low + (high - low) * nodes
        return x, (weights * (high - low)).log() + self._mark_log_prob(x, sent)

    def _mark_log_prob(self, x: Tensor, sent: Tensor) -> Tensor:
        """log of n x^(n−1), or with replacement of t^(n−1) e^(−ts) / Γ(n) dt/dx."""
        if not self.replace:
            return math.log(self.n) + (self.n - 1) * x.log()
        return (self.n - 1) * (-torch.log1p(-x)).log() - math.lgamma(self.n) + (sent - 1) * torch.log1p(-x)

    def _fewer(self, chance: Tensor, many: Tensor) -> Tensor:
        """P(fewer than n of the D events happen), chance (…, entries) of each of which there are `many`: counted, or of
        a normal variable."""
        n = self.n
        if self.update.size <= COUNTED:
            counts = torch.zeros(*chance.shape[:-1], n, dtype=chance.dtype, device=chance.device)
            counts[..., 0] = 1
            for p in chance.unbind(-1):  # the probability of 0, 1, … n − 1 events
                moved = torch.nn.functional.pad(counts[..., :-1], (1, 0))
                counts = counts * (1 - p)[..., None] + moved * p[..., None]
            return counts.sum(-1)
        mean, variance = (many * chance).sum(-1), (many * chance * (1 - chance)).sum(-1).clamp(min=TINY)
        return torch.special.ndtr((n - 0.5 - mean) / variance.sqrt())


def _unsent(within: Tensor, unsent: Tensor, x: Tensor) -> Tensor:
    """log (1 − x q_i), as often as it was not sent."""
    return torch.where(unsent != 0, unsent * torch.log1p(-(x * within).clamp(max=1 - TINY)), 0.0)


def _laplace(like: Tensor) -> Tensor:
    """Draws of Laplace(0, 1) in the shape of a tensor."""
    return noise("laplace", like, math.sqrt(2))


@functools.cache
def _laguerre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and the logarithms of the weights of ∫₀^∞ e^−s f(s) ds."""
    s, w = np.polynomial.laguerre.laggauss(nodes)
    return s, np.log(w)


@functools.cache
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of ∫₀¹ f(a) da."""
    a, w = np.polynomial.legendre.leggauss(nodes)
    return (a + 1) / 2, w / 2
