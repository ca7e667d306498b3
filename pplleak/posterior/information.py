"""How much was leaked, in bits: what the observation tells about the private inputs.

    gain(x, g) = log₂ p(g | x) − log₂ p(g) = log₂ p(x | g) − log₂ p(x)     at the truth x: pointwise information gain
    I(x; g)    = E gain(x, g)  over x and g drawn from the model           (Cover & Thomas 2006, section 2.3)

p(g | x) is the channel; what is left to compute is the evidence p(g) = ∫ p(g | z) p(z) dz. It comes from the inference:

    smc                 the product of the weights on its path from prior to posterior, unbiased for p(g)
    laplace, svi        importance sampling from the fitted q: p(g) ≈ (1/N) Σ p(zₙ, g) / q(zₙ), zₙ ~ q, unbiased, and
                        without any error where the posterior is in q's family (the linear-Gaussian model)
    hmc                 bridge sampling between its draws and the Laplace fit that it started from

Where the labels were shared, everything here is given y: I(x; g | y). Where not, they are summed out of p(g | x) and
p(g).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import Unit
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, build
from pplleak.density.surrogate import Surrogate
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior

LN2 = math.log(2)
MOST = 4000  # posterior draws that bridge sampling looks at


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate and its standard error (None where it cannot be known)."""

    value: float
    se: float | None

    def bits(self) -> Estimate:
        """The same, from nats."""
        return Estimate(self.value / LN2, None if self.se is None else self.se / LN2)


def evidence(posterior: Posterior, density: Density) -> Estimate | None:
    """log p(g) in nats, or log p(g | y) where the labels were shared; None where the inference does not offer it.

    An attribute `log_evidence` goes first (`smc`, `hmc`); a fitted family has it from its weights w = p(z, g) / q(z):

        log p(g) ≈ log w̄,     se ≈ sd(w) / (w̄ √N)
    """
    if posterior.attrs.get("log_evidence") is not None:
        return Estimate(posterior.attrs["log_evidence"], posterior.attrs.get("log_evidence_se"))
    if posterior.kind != "approximation" or posterior.log_weights is None:
        return None
    mean = _log_mean(np.asarray(posterior.log_weights, dtype=np.float64))
    return Estimate(mean.value - log_label_prior(density), mean.se)


def log_label_prior(density: Density) -> float:
    """log p(y) of labels that were shared, else 0: a density has it as a constant, p(g | y) has not."""
    if density.observed.labels is None:
        return 0.0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        node = density.trace({}, 1).nodes["y"]
        return float(node["fn"].log_prob(density.observed.labels).double().sum())


def _log_mean(log_w: np.ndarray) -> Estimate:
    top = float(log_w.max())
    w = np.exp(log_w - top)
    return Estimate(top + math.log(w.mean()), float(w.std(ddof=1) / (w.mean() * math.sqrt(len(w)))))


def log_likelihood(density: Density, x: Tensor) -> float:
    """log p(g | x) in nats at one batch x (batch, *input_shape); labels that were not shared are summed out.

    Raises:
        BadInput: the model is known only up to a factor, its channel depends on latents other than x (then p(g | x) is
            an integral), or there are too many label vectors to sum over.
    """
    chains, data = 2, {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        latents, _ = density.constrain(density.sample_prior(chains))
        values = {**latents, "x": x.to(density.client.dtype).expand(chains, *x.shape)}
        if density.observed.labels is None:
            labels = density.trace(values, chains).nodes["y"]["fn"]
            data["y"] = labels.enumerate_support(expand=False).reshape(-1, 1, density.observed.batch_size)
        nodes = density.trace({**values, **data}, chains).nodes
    _require_normalised(nodes, "how much was leaked")
    with torch.no_grad():
        given = nodes["g"]["fn"].log_prob(density.observed.g).double()
        prior = nodes["y"]["fn"].log_prob(nodes["y"]["value"]).double() if data else torch.zeros_like(given)
    total = (given + prior).expand(*given.shape[:-1], chains)
    log_density = (total.logsumexp(0) if data else total).reshape(chains)
    if not torch.allclose(log_density[0], log_density[1], rtol=1e-9, atol=1e-6):
        raise BadInput(
            "the model's channel depends on latents beside x: p(g | x) is an integral, and not computed here"
        )
    return float(log_density[0])


def require_normalised(density: Density, what: str) -> None:
    """Raise BadInput for a model that is known only up to a factor (`tv`): p(g) under it is, too."""
    with torch.random.fork_rng(devices=[]):
        latents, _ = density.constrain(density.sample_prior(1))
        _require_normalised(density.trace(latents, 1).nodes, what)


def _require_normalised(nodes: Mapping[str, Any], what: str) -> None:
    factor = next((n for n, node in nodes.items() if node["type"] == "sample" and isinstance(node["fn"], Unit)), None)
    if factor:
        raise BadInput(f"the model is known only up to its factor '{factor}': {what} needs a p(x) whose integral is 1; "
                       "take gmrf for tv")  # fmt: skip


def gain(
    model: Callable[..., Any], observed: Observation, client: Client | Surrogate, posterior: Posterior, x: Tensor
) -> Estimate:
    """The pointwise information gain log₂ p(x | g) − log₂ p(x) at the truth x (batch, *input_shape), in bits.

    Raises:
        BadInput: the inference offers no evidence, the client is a surrogate, or as for `log_likelihood`.
    """
    if isinstance(client, Surrogate):
        raise BadInput("how much was leaked is not known from a surrogate network: attack the client itself")
    density = build(model, client, observed)
    evidence_of_g = evidence(posterior, density)
    if evidence_of_g is None:
        raise BadInput(
            "this inference gives no evidence p(g): how much was leaked is known with laplace, svi, smc or hmc"
        )
    return Estimate(log_likelihood(density, x) - evidence_of_g.value, evidence_of_g.se).bits()


def mutual_information(gains: Sequence[float]) -> Estimate:
    """I(x; g) in bits: the mean of the gains of draws (x, g) from the model, and its standard error.

    A noisy evidence biases each gain upwards, by half the variance of log p(g) (Jensen): with a standard error of 0.1
    nats, by 0.007 bits.
    """
    values = np.asarray(gains, dtype=np.float64)
    if not len(values):
        raise BadInput("the mutual information needs at least one draw from the model")
    se = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(float(values.mean()), se)


def bridge(
    density: Density, z: Tensor, lp: Tensor, mode: Tensor, factor: Tensor, proposals: int = 1000, sweeps: int = 1000
) -> Estimate | None:
    """log p(g), as `evidence` gives it, from posterior draws by bridge sampling to q = Normal(mode, factor factorᵀ).

    With l = p(z, g) / q(z) at the n₁ posterior draws and at n₂ draws of q, s_k = n_k / (n₁ + n₂), the fixed point r of

        r = mean over q of [l / (s₁ l + s₂ r)] / mean over the posterior of [1 / (s₁ l + s₂ r)]

    (Meng & Wong 1996). Exact in the limit for any q that overlaps with the posterior; None where it does not. se: from
    the spread of both means, that over the posterior by its chains. At most `MOST` draws are looked at, evenly spaced.

    Args:
        z: (chain, draw, dim), draws in unconstrained coordinates. lp: (chain, draw), log p(z, g) there.
        mode: (dim,). factor: (dim, dim), any root of q's covariance. proposals: n₂.
    """
    thin = max(1, lp.numel() // MOST)
    z, lp, root = z[:, ::thin], lp[:, ::thin], factor.double()
    log_det = torch.linalg.slogdet(root).logabsdet
    constant = 0.5 * len(mode) * math.log(2 * math.pi) + log_det
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # what is drawn later stays what it was
        w = torch.randn(proposals, len(mode), dtype=torch.float64, device=z.device)
        other = torch.cat([density(part) for part in (mode.double() + w @ root.mT).to(z.dtype).split(256)])
    whitened = torch.linalg.solve(root, (z.flatten(0, 1).double() - mode.double()).mT).mT
    l1 = (lp.double().flatten() + 0.5 * whitened.square().sum(1) + constant).reshape(lp.shape).cpu().numpy()
    l2 = (other + 0.5 * w.square().sum(1) + constant).cpu().numpy()
    shift = float(np.median(l1))
    a, b = (np.exp(np.clip(v - shift, -600, 600)) for v in (l1, l2))
    share, r = l1.size / (l1.size + l2.size), 1.0
    for _ in range(sweeps):
        up, down = b / (share * b + (1 - share) * r), 1 / (share * a + (1 - share) * r)
        before, r = r, float(up.mean() / down.mean())
        if not (math.isfinite(r) and r > 0):
            return None
        if abs(math.log(r / before)) < 1e-9:
            break
    chains = down.mean(1)
    errors = (v.std(ddof=1) / math.sqrt(len(v)) / v.mean() if len(v) > 1 else math.nan for v in (up, chains))
    se = math.hypot(*errors)
    return Estimate(math.log(r) + shift - log_label_prior(density), se if math.isfinite(se) else None)
