"""Mixup and InstaHide (Huang et al. 2020): the gradient of a weighted mean of images, with their labels mixed alike.

    m_b = Σ_j λ_bj x_bj,  q_b = Σ_j λ_bj e(y_bj),   λ_b ~ Dirichlet(alpha, …, alpha),   j = 1 … k,  x_b1 = x_b
    x̃_b = 1/2 + s_b ⊙ (m_b − 1/2)                   s_b: 1, or random signs, one a pixel (InstaHide)
    g = ∇θ (1/B) Σ_b ℓ(f_θ(x̃_b), q_b)

with k − 1 partners for every example, drawn at random from other images and mixed in with their labels. Signs are those
of pixels in [−1, 1], of which x ∈ [0, 1] is the half. Mixup is k = 2 without signs; InstaHide is k = 4 or 6 with them.

Weights are Dirichlet as in the authors' library GradAttack, which gives the private image an alpha of 3. InstaHide's
bound of 0.65 on the largest weight is left out: a larger alpha makes weights more alike. It draws a partner for
every epoch anew, among private images, and in its second variant k − 2 among public ones: here they are images of one
dataset, and drawn at every gradient.

Source: Zhang, Cisse, Dauphin and Lopez-Paz, mixup: Beyond Empirical Risk Minimization, ICLR 2018; Huang, Song, Li and
Arora, InstaHide: Instance-hiding Schemes for Private Distributed Learning, ICML 2020; as a defence
of gradients: Huang, Gupta, Song, Li and Arora, Evaluating Gradient Inversion Attacks and Defenses in Federated
Learning, NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pplleak.client import Client
from pplleak.client.loss import DEFAULT, get
from pplleak.errors import BadInput, require_positive, require_seed
from pplleak.federation.defences import Attacks
from pplleak.federation.defences._others import images_of
from pplleak.settings import Named

ATTACKS = Attacks("inverting_gradients", "Huang et al. 2021", "mixup")

SECRET = -1  # the seed of draws that nobody but the client knows
WIDTH = 0.3  # of the tanh that lends a sign its slope, in standard deviations of ε
MOST = 64  # images in a mixture


@dataclass(frozen=True, eq=False)
class Draws:
    """weights (B, k); partners (B, k − 1, *input_shape) with labels (B, k − 1); signs (B, *input_shape), ±1."""

    weights: Tensor
    partners: Tensor
    labels: Tensor
    signs: Tensor


def share(
    client: Client,
    x: Tensor,
    y: Tensor,
    *,
    images: int = 2,
    alpha: float = 1.0,
    signs: bool = False,
    others: str = "digits",
    public_seed: int = SECRET,
) -> Tensor:
    """The gradient of the mixed images with the mixed labels, (D,).

    Args:
        images: k, how many images are mixed, the private one included.
        alpha: of the weights' Dirichlet law; large: equal weights.
        signs: flip every pixel about grey with probability one half (InstaHide).
        others: whose images are mixed in: digits, mnist, cifar10 or a FOLDER ($PPLLEAK_DATA_ROOT).
        public_seed: of weights, partners and signs, where the server has it, too; -1: only the client knows them.
    """
    require(client, images, alpha, public_seed)
    made = draws(client, len(y), images=images, alpha=alpha, signs=signs, others=others, public_seed=public_seed)
    mixed = mix(x.to(client.dtype), made.partners, made.weights, made.signs)
    return client.update(mixed, targets(client, y, made.labels, made.weights)).materialise()


def require(client: Client, images: int, alpha: float, public_seed: int) -> None:
    """Raise BadInput for a mixture that cannot be: of its settings, or of the client's loss."""
    require_positive(alpha=alpha)
    if public_seed != SECRET:
        require_seed(public_seed, "public_seed")
    if not 2 <= images <= MOST:
        raise BadInput(f"mixup takes at least 2 images (the private one included) and at most {MOST}, not {images}")
    loss = get(client.loss)
    if Named.parse(client.loss).name != DEFAULT or loss.weights or loss.targets != "classes":
        raise BadInput(f"mixup mixes labels as cross entropy takes them, and the client's loss is {client.loss}")


def draws(
    client: Client, batch_size: int, *, images: int, alpha: float, signs: bool, others: str, public_seed: int
) -> Draws:
    """What a client draws for one batch, by torch's generator; of a public seed, always the same."""
    if public_seed != SECRET:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(public_seed)
            return draws(client, batch_size, images=images, alpha=alpha, signs=signs, others=others, public_seed=SECRET)
    held = images_of(others, client)
    weights = torch.distributions.Dirichlet(torch.full((images,), alpha, dtype=torch.float64)).sample((batch_size,))
    picks = torch.randint(len(held), (batch_size, images - 1))
    shape = (batch_size, *client.input_shape)
    flips = 1.0 - 2.0 * torch.randint(2, shape) if signs else torch.ones(shape)
    labels = held.y[picks].to(client.device)
    weights, partners, flips = (t.to(client.device, client.dtype) for t in (weights, held.x[picks], flips))
    return Draws(weights, partners, labels, flips)


def mix(x: Tensor, partners: Tensor, weights: Tensor, signs: Tensor) -> Tensor:
    """x̃ (*chains, B, *input_shape) of private images x of that shape; the rest as in `Draws`, with leading dimensions
    that broadcast. Differentiable."""
    dims = partners.dim() - weights.dim()
    w = weights.reshape(*weights.shape, *(1,) * dims).movedim(-dims - 1, 0)
    mean = w[0] * x + (w[1:] * partners.movedim(-dims - 1, 0)).sum(0)
    return 0.5 + signs * (mean - 0.5)


def targets(client: Client, y: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """q (*chains, B, num_classes) of labels y (*chains, B); the rest as in `Draws`."""
    own, theirs = (one_hot(t, client.num_classes).to(weights.dtype) for t in (y, labels))
    return weights[..., :1] * own + (weights[..., 1:, None] * theirs).sum(-2)


def signs_of(noise: Tensor) -> Tensor:
    """±1 with probability one half each, of ε ~ Normal(0, 1): its sign, with the slope of a tanh of width 0.3."""
    soft = torch.tanh(noise / WIDTH)
    return torch.where(noise >= 0, 1.0, -1.0).to(noise.dtype) + (soft - soft.detach())
