"""A perturbed label: the gradient is that of a soft label, which only the client knows.

    q_b = (1 − s) e(y_b) + s d_b,     d_b ~ Dirichlet(1, …, 1),     g = ∇θ (1/B) Σ_b ℓ(f_θ(x_b), q_b)

Attacks that need the label, or read it off the sign of the last layer's gradient, take a wrong one; the mean of q over
the draws is label smoothing (Szegedy et al. 2016), so that training goes on. It is mixup's labels without its images.

For one example the last layer gives q away in closed form, q = softmax(f(x)) − ∂ℓ/∂b (`pplleak.density.soft_labels`;
Wang, Liang and He 2024), and with q on the simplex as a latent variable nothing is hidden (`models/soften.py`).

Source: the perturbation is that of labels in Wang, Liang and He, Towards Eliminating Hard Label Constraints in Gradient
Inversion Attacks, ICLR 2024, who attack smoothed and mixed ones, with s as in label smoothing; that the share of every
other class is drawn at random is a choice made here. Li et al. 2024 (Labels Are Culprits) leave labels hard:
`same_label`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pplleak.client import Client
from pplleak.client.loss import DEFAULT, get
from pplleak.errors import BadInput
from pplleak.federation.defences import Attacks
from pplleak.settings import Named

ATTACKS = Attacks("inverting_gradients", "Wang, Liang and He 2024, before they know that labels are soft", "soften")


def share(client: Client, x: Tensor, y: Tensor, *, softness: float = 0.5) -> Tensor:
    """The gradient of the softened labels, (D,).

    Args:
        softness: s, what is taken from the label and spread at random over the classes, in [0, 1).
    """
    require(client, softness)
    one = torch.ones(len(y), client.num_classes, dtype=torch.float64)
    drawn = torch.distributions.Dirichlet(one).sample().to(client.device, client.dtype)
    return client.update(x, softened(client, y, drawn, softness)).materialise()


def require(client: Client, softness: float) -> None:
    """Raise BadInput for a softness outside [0, 1), or a loss whose labels are not mixed as cross entropy's are."""
    if not 0 <= softness < 1:
        raise BadInput(f"softness must be at least 0 and below 1 (what the label loses), not {softness}")
    loss = get(client.loss)
    if Named.parse(client.loss).name != DEFAULT or loss.weights or loss.targets != "classes":
        raise BadInput(f"soften mixes labels as cross entropy takes them, and the client's loss is {client.loss}")


def softened(client: Client, y: Tensor, drawn: Tensor, softness: float) -> Tensor:
    """q (*chains, B, num_classes) of labels y (*chains, B) and d of its own shape; chains broadcast."""
    return (1 - softness) * one_hot(y, client.num_classes).to(drawn.dtype) + softness * drawn
