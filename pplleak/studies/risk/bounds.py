"""Bounds that no adversary crosses, whatever it computes: on the squared error, and on the success within δ.

    E‖x̂ − x‖² ≥ tr G (E[I_g] + I_p)⁻¹ Gᵀ                  van Trees: every adversary, x drawn from the model
    E‖x̂ − x‖² ≥ d² / tr I_g(x)                            Fisher information leakage: unbiased ones, at one x
    E‖x̂ − x‖² ≥ Σ_i diam_i² / 4 (e^ε − 1)                 Rényi-DP: unbiased ones
    P(d(x, x̂) ≤ δ) ≤ Φ(Φ⁻¹(κ(δ)) + C / σ)                 ReRo: every adversary, behind DP-SGD

Each function names its paper, and raises `BadInput` where its bound does not apply. The last one is
`pplleak.studies.risk.rero`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pyro.distributions import Unit
from torch import Tensor

from pplleak import channels
from pplleak.channels import Channel
from pplleak.client import Client
from pplleak.client.update import Update
from pplleak.density import Density
from pplleak.errors import BadInput, require_positive
from pplleak.progress import ProgressBar, silent

Nodes = Mapping[str, Any]

# -- Fisher information --------------------------------------------------------------------------------------------


def entry_information(channel: Channel) -> tuple[Update, float | Tensor]:
    """The update that noise hides, and λ: the Fisher information of g about it is at most diag(λ), in 1 / unit².

    Additive noise of density p on each entry has λ = ∫ p'² / p: 1/σ² (Gaussian), 2/σ² (Laplace of standard deviation
    σ), 1/σ² + l1 / (σ² Z) (elastic); a t over D entries has (ν + D) / (ν + D + 2) of 1/σ². A known mask keeps λ where
    it is 1; of known measurements A u, or of a code E(u), they are the entries. What is done to a noisy update
    afterwards (rounding, signs, top-k, pruning at random, a decoder) adds no information (data processing; Zamir 1998):
    for these, and here for a t, λ is an upper bound, and what is computed from it is a valid lower bound on the error.

    Raises:
        BadInput: the channel's noise is not independent from entry to entry.
    """
    laplace = getattr(channel, "noise", "gaussian") == "laplace"
    match channel:
        case channels.Weighted():
            return channel.update, channel.sigmas**-2
        case channels.Rounded():
            return channel.update, channel.spread(channel.dof) ** -2
        case channels.DPSGD() | channels.DPFedAvg():
            return channel.clipped.update, channel.sigma**-2
        case channels.Elastic():
            c = channel.l1 / 2 / channel.sigma
            z = (
                math.sqrt(2 * math.pi)
                * float(torch.special.erfcx(torch.tensor(c / math.sqrt(2)).double()))
                * channel.sigma
            )
            return channel.update, (1 + channel.l1 / z) / channel.sigma**2
        case channels.Masked():
            return channel.update, channel.mask * (2 if laplace else 1) / channel.sigma**2
        case channels.Pruned():
            return channel.update, (1 - channel.rate) * (2 if laplace else 1) / channel.sigma**2
        case channels.Projected() | channels.Autoencoded():
            return channel.measured(), channel.sigma**-2
        case channels.OneBit():
            return channel.update, 1 / channel.spread
        case channels.Laplace():
            return channel.update, 2 / channel.sigma**2
        case channels.Gaussian() | channels.TopK() | channels.Quantised() | channels.Sign():
            return channel.update, channel.sigma**-2
    raise BadInput(f"no Fisher information is known for the channel {type(channel).__name__.lower()}: its entries are "
                   "not hidden by independent noise")  # fmt: skip


def fisher(channel_at: Callable[[Tensor], Channel], at: Tensor, chunk: int = 64) -> Tensor:
    """I_g(t) = Jᵀ diag(λ) J, J = ∂u/∂t, at one point t (n,); (n, n), float64.

    It is the Hessian of ½ Σ λ_i (u_i(t') − u_i(t))² at t' = t, where its second-order terms vanish: lazy, and J is
    never formed.

    Args:
        channel_at: points (k, n) -> the channel of k chains. chunk: Hessian-vector products in one batch.
    """
    with torch.no_grad():
        update, weight = entry_information(channel_at(at[None]))
        centre = update.materialise()[0]
    precision = torch.as_tensor(weight, dtype=torch.float64, device=at.device).expand(len(centre))

    def energy(points: Tensor) -> Tensor:
        return 0.5 * entry_information(channel_at(points))[0].sqdist(centre, precision)

    return curvature(energy, at, chunk)


def curvature(energy: Callable[[Tensor], Tensor], at: Tensor, chunk: int = 64) -> Tensor:
    """The Hessian (n, n) of energy: (k, n) -> (k,) at one point (n,), by Hessian-vector products, float64."""
    rows = []
    for directions in torch.eye(len(at), dtype=at.dtype, device=at.device).split(chunk):
        copies = at.expand(len(directions), -1).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(copies).sum(), copies, create_graph=True)
        rows.append(torch.autograd.grad((gradient * directions).sum(), copies)[0])
    h = torch.cat(rows).double()
    return (h + h.mT) / 2


def fisher_of(client: Client, channel: Callable[[Update], Channel], x: Tensor, y: Tensor) -> Tensor:
    """I_g(x) about all pixels of x (batch, *input_shape) with labels y (batch,), (n, n), in 1 / pixel unit².

    Raises:
        BadInput: the network has kinks: where u jumps, g tells x apart more sharply than any Fisher information.
    """
    require_smooth(client)

    def at(points: Tensor) -> Channel:
        return channel(client.update(points.reshape(-1, *x.shape), y.expand(len(points), -1)))

    return fisher(at, x.flatten())


def require_smooth(client: Client) -> None:
    """Raise BadInput for a client whose network has kinks."""
    if client.kinks:
        raise BadInput("bounds by Fisher information need an update that is continuous in x, but the network has kinks "
                       f"({', '.join(client.kinks)}): take a smooth activation (gelu, softplus)")  # fmt: skip


# -- bounds on the squared error -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class VanTrees:
    """E‖x̂ − x‖² ≥ square, summed over all pixels of the batch.

    se: Monte Carlo standard error over the draws of x (jackknife). draws: how many. pixels: of the batch.
    """

    square: float
    se: float
    draws: int
    pixels: int

    @property
    def rms(self) -> float:
        """The least root-mean-square error of a pixel."""
        return math.sqrt(self.square / self.pixels)


def van_trees(density: Density, draws: int = 20, *, seed: int = 0, progress: ProgressBar = silent) -> VanTrees:
    """The Bayesian Cramér-Rao bound on every adversary's E‖x̂ − x‖², x, y and g drawn from the model.

        E‖x̂ − x‖² ≥ tr G (E[I_g(z)] + I_p)⁻¹ Gᵀ,    G = E[∂x/∂z],   I_p = E[∇ log p(z) ∇ log p(z)ᵀ]

    (van Trees 1968, section 2.4; for a function x of z, Gill & Levit 1995), z the model's latents mapped to the
    whole real line, where densities of bounded sites, too, are smooth and vanish at the end. Labels are taken as known
    to the adversary, which only helps it. Equal to the error of the posterior mean where x is affine in z and the
    posterior Gaussian with one covariance. It holds for examples in a fixed order: matching them is not covered.

    Raises:
        BadInput: the network has kinks, the model is known only up to a factor, or as for `entry_information`.
    """
    require_positive(draws=draws)
    require_smooth(density.client)
    free = replace(density, observed=replace(density.observed, labels=None), discrete={}, log_orders={})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        z = free.sample_prior(draws)
        with torch.no_grad():
            nodes = free.trace(free.constrain(z)[0], draws).nodes
    if any(node["type"] == "sample" and isinstance(node["fn"], Unit) for node in nodes.values()):
        raise BadInput(
            "the Bayesian Cramér-Rao bound needs a prior that is known in full: this model has a pyro.factor"
        )
    labels = nodes["y"]["value"].expand(draws, density.observed.batch_size)
    data: list[Tensor] = []
    prior: list[Tensor] = []
    mixed: list[Tensor] = []
    for k in progress("Fisher information", draws):
        at = functools.partial(_traced, free, labels[k])
        data.append(fisher(functools.partial(_channel, at), z[k]))
        prior.append(_prior_information(free, z[k]) if k == 0 or not _standard(nodes, free) else prior[0])
        mixed.append(_jacobian(functools.partial(_pixels, at), z[k]))
    total, jacobian = torch.stack(data) + torch.stack(prior), torch.stack(mixed)

    def bound(information: Tensor, g: Tensor) -> float:
        return float((g * torch.linalg.solve(information, g.mT).mT).sum())

    full = bound(total.mean(0), jacobian.mean(0))
    if draws == 1:
        return VanTrees(full, math.nan, 1, jacobian.shape[1])
    without = [bound((total.sum(0) - t) / (draws - 1), (jacobian.sum(0) - g) / (draws - 1))
               for t, g in zip(total, jacobian, strict=True)]  # fmt: skip
    return VanTrees(full, math.sqrt((draws - 1) * float(np.var(without))), draws, jacobian.shape[1])


def _traced(density: Density, labels: Tensor, points: Tensor) -> Nodes:
    """The model's nodes at points (k, dim), with the same labels at each."""
    values, _ = density.constrain(points)
    return density.trace({**values, "y": labels.expand(len(points), -1)}, len(points)).nodes


def _channel(at: Callable[[Tensor], Nodes], points: Tensor) -> Channel:
    return at(points)["g"]["fn"]


def _pixels(at: Callable[[Tensor], Nodes], points: Tensor) -> Tensor:
    """x at points (k, dim), (k, pixels of the batch)."""
    return at(points)["x"]["value"].reshape(len(points), -1)


def _standard(nodes: Nodes, density: Density) -> bool:
    """True where all of z is one Normal site, whose information is the same everywhere."""
    base = getattr(nodes[density.sites[0].name]["fn"], "base_dist", None)
    return len(density.sites) == 1 and isinstance(base, torch.distributions.Normal)


def _prior_information(density: Density, z: Tensor) -> Tensor:
    """−∇² log p(z) at one point z (n,), (n, n); its mean is that of ∇ log p ∇ log pᵀ."""

    def energy(points: Tensor) -> Tensor:
        values, log_det = density.constrain(points)
        nodes = density.trace(values, len(points)).nodes
        terms = [nodes[s.name]["fn"].log_prob(nodes[s.name]["value"]).double() for s in density.sites]
        return -(log_det + sum(terms))

    return curvature(energy, z)


def _jacobian(images: Callable[[Tensor], Tensor], z: Tensor, chunk: int = 64) -> Tensor:
    """∂x/∂z at one point z (n,), (pixels, n), float64; images: (k, n) -> (k, pixels)."""
    pixels = images(z[None]).shape[1]
    rows = []
    for directions in torch.eye(pixels, dtype=z.dtype, device=z.device).split(chunk):
        copies = z.expand(len(directions), -1).clone().requires_grad_()
        rows.append(torch.autograd.grad((images(copies) * directions).sum(), copies)[0])
    return torch.cat(rows).double()


def leakage(information: Tensor) -> float:
    """η = √(tr I_g(x) / d), the Fisher information leakage per pixel (Hannun et al. 2021; Guo et al. 2022, as dFIL)."""
    return math.sqrt(float(information.diagonal().double().mean()))


def unbiased(information: Tensor) -> float:
    """E‖x̂ − x‖² ≥ d / η² = d² / tr I_g(x) at this x, for every unbiased adversary (Guo et al. 2022).

    It is weak on purpose, for it needs the trace alone: the Cramér-Rao bound itself is tr I_g(x)⁻¹. A prior makes an
    adversary biased, and such a one may lie below: use `biased`, or `van_trees`.
    """
    return len(information) / leakage(information) ** 2


def biased(information: Tensor, bias: Tensor, jacobian: Tensor) -> float:
    """E‖x̂ − x‖² ≥ (tr Ψ)² / tr I_g(x) + ‖ψ(x) − x‖² at this x, for the adversary with mean ψ(x) = E[x̂ | x].

    The Cramér-Rao bound tr Ψ I⁻¹ Ψᵀ of a biased estimator, weakened by Cauchy-Schwarz to the trace of I.

    Args:
        information: (n, n). bias: ψ(x) − x, (n,). jacobian: Ψ = ∂ψ/∂x, (n, n).
    """
    trace = float(information.diagonal().double().sum())
    return float(jacobian.diagonal().double().sum()) ** 2 / trace + float(bias.double().square().sum())


def gaussian_renyi(noise_multiplier: float, order: float = 2.0, *, sensitivity: float = 2.0) -> float:
    """ε of Rényi-DP at an order α: α s² / 2z² for the Gaussian mechanism (Mironov 2017, proposition 7).

    Args:
        sensitivity: s, in units of the clip: 2 where an example is replaced by another, 1 where it is added or removed.
    """
    require_positive(noise_multiplier=noise_multiplier, order=order, sensitivity=sensitivity)
    return order * (sensitivity / noise_multiplier) ** 2 / 2


def renyi(epsilon: float, diameters: Tensor) -> float:
    """E‖x̂ − x‖² ≥ Σ_i diam_i² / 4 (e^ε − 1), for every unbiased adversary of a (2, ε)-Rényi-DP mechanism (Guo et al.
    2022, from the Hammersley-Chapman-Robbins bound).

    Args:
        epsilon: at order 2, for replacing one example by another. diameters: of the range of every pixel, (n,).
    """
    require_positive(epsilon=epsilon)
    return float(diameters.double().square().sum()) / (4 * math.expm1(epsilon))
