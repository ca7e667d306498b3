"""Measures of leakage that need no attack: what the literature reads off the slopes of the update at the truth.

J = ∂u/∂x is the Jacobian of the update in the pixels, D × n, δ = g − u(x) what the protection did to it, and
I_g = Jᵀ Λ J the Fisher information of the channel (`pplleak.studies.risk.bounds`):

    influence         ‖(JᵀJ)⁻¹ Jᵀ δ‖           how far a matching attack is driven off the truth (I²F)
    influence_bound   ‖Jᵀ δ‖ / λ_max(JᵀJ)      its lower bound, by products with J alone
    lipschitz_bound   ‖δ‖ / √λ_max(JᵀJ)        how far an image must lie that has the gradient g itself
    by_layer          √(tr I_l / n)            Fisher information leakage of each layer's part of the gradient
    linearised        tr (K⁻¹ + I_g)⁻¹         squared error of the Bayes adversary where u is affine, x ~ Normal(·, K)

Each is local: it linearises u at the truth, which an adversary does not know. `benchmarks/measures.py` asks which of
them ranks leaks as the realised attack does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pplleak import channels
from pplleak.channels import Channel
from pplleak.client import Client
from pplleak.client.update import Update
from pplleak.errors import BadInput, require_positive
from pplleak.studies.bits.layers import parts
from pplleak.studies.risk import bounds

UNIT = 1.0  # σ of the noise whose Fisher information is JᵀJ
QUIETEST = 1e-3  # of an equal σ: the least that a tensor is given


def influence(client: Client, x: Tensor, y: Tensor, deviation: Tensor) -> float:
    """I²F = ‖(JᵀJ)⁻¹ Jᵀ δ‖₂, in pixel units, over all pixels of the batch.

    To first order the distance to x of what minimises ‖u(x̂) − g‖², no prior being known. Of noise of variance σ² on
    each entry, E[I²F²] = σ² tr (JᵀJ)⁻¹ = tr I_g⁻¹: the Cramér-Rao bound on unbiased adversaries. Infinite where JᵀJ is
    singular to float64: some direction of x does not reach the gradient.

    Args:
        x: (batch, *input_shape). y: (batch,). deviation: δ = g − u(x), (D,).

    Raises:
        BadInput: the network has kinks.

    Source: Zhang, Hong, Deng, Mahdavi and Zhou, Understanding Deep Gradient Leakage via Inversion Influence Functions,
    NeurIPS 2023; J there is the transpose of this one.
    """
    gram = bounds.fisher_of(client, lambda u: channels.Gaussian(u, UNIT), x, y)
    values, vectors = torch.linalg.eigh(gram)
    pull = _pulled(client, x, y, deviation)
    if values[0] <= len(values) * torch.finfo(torch.float64).eps * values[-1]:
        return math.inf
    return float((vectors.mT @ pull / values).norm())


def influence_bound(client: Client, x: Tensor, y: Tensor, deviation: Tensor, *, iterations: int = 50) -> float:
    """I²F ≥ ‖Jᵀ δ‖ / λ_max(JᵀJ), in pixel units: the least that δ drives a matching attack off, to first order.

    Never forms JᵀJ: a slope for Jᵀ δ, and a Hessian-vector product an iteration for λ_max (power iteration; what it has
    not reached makes the bound too large by that much). Arguments and errors as for `influence`.

    Source: Zhang et al. 2023; its two parts as in the authors' code, `demos/bound_I2F.py`.
    """
    largest = _largest(client, x, y, iterations)
    return float(_pulled(client, x, y, deviation).norm()) / largest if largest else math.inf


def lipschitz_bound(client: Client, x: Tensor, y: Tensor, deviation: Tensor, *, iterations: int = 50) -> float:
    """‖δ‖ / L in pixel units, L = √λ_max(JᵀJ) the Lipschitz constant of the update at x: the least distance from x of
    an image x̂ whose update is g itself.

        ‖u(x̂) − u(x)‖ ≤ L ‖x̂ − x‖,   u(x̂) = g = u(x) + δ      →      ‖x̂ − x‖ ≥ ‖δ‖ / L

    to first order, with λ_max from below, by power iteration; a bound where L holds on all the way from x to x̂. Never
    below `influence_bound`, whose ‖Jᵀ δ‖ is at most L ‖δ‖. Of noise in all D entries most lies where no image can
    follow, no image has the gradient g, and this is no bound on the attack that comes nearest.

    Arguments and errors as for `influence_bound`.

    Source: the bound by a Lipschitz constant of Wang et al. 2024, which was not at hand: what is here is that argument,
    derived, at the truth and not over a region.
    """
    largest = _largest(client, x, y, iterations)
    if deviation.shape != (client.update_size,):
        raise BadInput(_shaped(deviation, client))
    return float(deviation.double().norm()) / math.sqrt(largest) if largest else math.inf


def by_layer(client: Client, sigma: float, x: Tensor, y: Tensor) -> dict[str, float]:
    """η_l = √(tr I_l(x) / n) in 1 / pixel unit, of each layer's part of the gradient behind Gaussian noise σ, and of
    `layers.ALL` together. Unlike bits, squares add up: η² = Σ_l η_l².

    Args:
        x: (batch, *input_shape). y: (batch,). n: pixels of the batch.

    Raises:
        BadInput: the network has kinks.

    Source: Hannun, Guo and van der Maaten, Measuring Data Leakage in Machine-Learning Models with Fisher Information,
    UAI 2021, by layer; η of the whole is `bounds.leakage`.
    """
    return {layer: _of(client, names, sigma, x, y) for layer, names in parts(client).items()}


def least_leaking(client: Client, sigma: float, x: Tensor, y: Tensor) -> tuple[float, ...]:
    """σ_p of each parameter tensor, for the channel `weighted`: of Gaussian noise with the power of an equal σ, that
    which leaves the least Fisher information tr I_g(x).

        minimise Σ_p A_p / σ_p²  with  Σ_p D_p σ_p² = D σ²      →      σ_p² ∝ √(A_p / D_p),   A_p = ‖∂u_p/∂x‖²

    over the D_p entries of a tensor. One that does not depend on x gets no noise by this rule; here it keeps a
    thousandth of σ, for a channel has some everywhere. It is the best for this x, and is itself read off x: take a
    public image, or the noise tells of the private one.

    Args:
        x: (batch, *input_shape). y: (batch,).

    Raises:
        BadInput: the network has kinks, or nothing that it shares depends on x.

    Source: Chen, Gürsoy and Lei, Optimal Defenses Against Gradient Reconstruction Attacks, arXiv 2411.03746: noise that
    is customised to the parameters under a lower bound by Fisher information. Only its abstract and introduction were
    read; the programme above and its solution (Cauchy-Schwarz) are derived here, a tensor at a time.
    """
    require_positive(sigma=sigma)
    sizes = [shape.numel() for shape in client.layers.values()]
    pixels = x.numel()
    slopes = [pixels * _of(client, (name,), UNIT, x, y) ** 2 for name in client.layers]
    shares = [math.sqrt(a / d) for a, d in zip(slopes, sizes, strict=True)]
    power = sum(d * s for d, s in zip(sizes, shares, strict=True))
    if not power:
        raise BadInput("nothing that the network shares depends on this image: no noise is needed")
    return tuple(max(sigma * math.sqrt(sum(sizes) * s / power), QUIETEST * sigma) for s in shares)


def _of(client: Client, names: Sequence[str], sigma: float, x: Tensor, y: Tensor) -> float:
    """η of what these parameters share."""
    kept = {n: shape for n, shape in client.layers.items() if n in names}
    held = (*client.withheld, *(n for n in client.layers if n not in names))
    alone = client if len(kept) == len(client.layers) else replace(client, layers=kept, withheld=held)
    return bounds.leakage(bounds.fisher_of(alone, lambda u: channels.Gaussian(u, sigma), x, y))


def linearised(information: Tensor, covariance: Tensor) -> float:
    """tr (K⁻¹ + I)⁻¹, squared pixel units summed over the n pixels: what a Bayes adversary is left with where the
    update is affine in x and x ~ Normal(·, K); in general an approximation at this x, and no bound.

    Args:
        information: I, (n, n). covariance: K, (n, n), positive definite.
    """
    prior = torch.cholesky_inverse(torch.linalg.cholesky(covariance.double()))
    return float(torch.cholesky_inverse(torch.linalg.cholesky(prior + information.double())).trace())


def signal_to_noise(client: Client, channel: Callable[[Update], Channel], x: Tensor, y: Tensor) -> float:
    """√(Σ λ_i u_i² / D): the update's entries in units of the noise on each, as a look at the gradient's norm tells."""
    update, weight = bounds.entry_information(channel(client.update(x, y)))
    u = update.materialise().double()
    return float((weight * u.square()).mean().sqrt())


def _largest(client: Client, x: Tensor, y: Tensor, iterations: int) -> float:
    """λ_max(JᵀJ), by power iteration; 0 where no pixel reaches the gradient."""
    require_positive(iterations=iterations)
    bounds.require_smooth(client)
    centre = client.update(x, y).materialise().detach()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
    largest = 0.0
    for _ in range(iterations):
        at = x.clone().requires_grad_()
        energy = 0.5 * client.update(at, y).sqdist(centre)
        (slope,) = torch.autograd.grad(energy, at, create_graph=True)
        (moved,) = torch.autograd.grad((slope * v / v.norm()).sum(), at)
        largest, v = float(moved.double().norm()), moved
        if not largest:
            break
    return largest


def _pulled(client: Client, x: Tensor, y: Tensor, deviation: Tensor) -> Tensor:
    """Jᵀ δ, (n,), float64."""
    if deviation.shape != (client.update_size,):
        raise BadInput(_shaped(deviation, client))
    at = x.clone().requires_grad_()
    (pull,) = torch.autograd.grad(client.update(at, y).inner(deviation), at)
    return pull.flatten().double()


def _shaped(deviation: Tensor, client: Client) -> str:
    return f"the deviation has shape {tuple(deviation.shape)}, the client's update ({client.update_size},)"
