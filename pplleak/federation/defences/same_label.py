"""Repeated labels (Li et al. 2024; Eloul et al. 2024): every example shares its gradient with others of its class.

    g = ∇θ (1/kB) Σ_b Σ_j ℓ(f_θ(x_bj), y_b),     x_b1 = x_b,   j = 1 … k

The rows of the last layer's gradient are then sums over several examples each, and rules that tell examples apart by
their labels have nothing to go by. All k images of a class are the client's own, drawn from `others`.

What is hidden is which of the k images is which: of one class they are exchangeable, so that no adversary can tell,
and one who knows (`models/same_label.py`) finds all k together, or none.

Source: Li, Wang, Gu, Lv and Tian, Labels Are Culprits: Defending Gradient Attack on Privacy, IEEE Internet of Things
Journal 2024. The paper was not at hand, but the abstract ("special operations on the repetition and order of labels")
and the authors' code, which gives a batch of 32 four labels, eight times each. Their order of labels, which is
asynchronous BatchNorm and local steps in the code, is left out. Eloul, Silavong, Kamthe, Georgiadis and Moran, Mixing
Gradients in Neural Networks as a Strategy To Enhance Privacy in Federated Learning, WACV 2024, of which the abstract
was read, draws identical labels, too, and chooses a loss, which is the client's `mse`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.client.loss import get
from pplleak.errors import BadInput
from pplleak.federation.defences import Attacks
from pplleak.federation.defences._others import images_of

ATTACKS = Attacks("inverting_gradients", "Li et al. 2024, with the batch's size and labels", "same_label")

MOST = 64  # examples of one class


def share(client: Client, x: Tensor, y: Tensor, *, repeats: int = 4, others: str = "digits") -> Tensor:
    """The mean gradient of the private examples and their companions, (D,).

    Args:
        repeats: k, examples of each label, the private one included.
        others: whose images the companions are: digits, mnist, cifar10 or a FOLDER ($PPLLEAK_DATA_ROOT).
    """
    require(client, repeats)
    with_it = companions(client, y, repeats, others)
    return client.update(*together(client, x.to(client.dtype), with_it, y)).materialise()


def require(client: Client, repeats: int) -> None:
    """Raise BadInput for a number of companions that cannot be, or a loss whose targets are no classes."""
    if not 1 <= repeats <= MOST:
        raise BadInput(f"repeats must be at least 1 (the private example) and at most {MOST}, not {repeats}")
    if get(client.loss).targets != "classes":
        raise BadInput(f"same_label repeats classes, and the targets of the loss {client.loss} are none")


def companions(client: Client, y: Tensor, repeats: int, others: str) -> Tensor:
    """Images of the same classes, drawn by torch's generator, (B, k − 1, *input_shape) for labels y (B,)."""
    held, picks = images_of(others, client), []
    for label in y.tolist():
        mine = (held.y == label).nonzero().flatten()
        if not len(mine):
            raise BadInput(f"'{others}' has no image of class {label}: set others to images of the client's classes")
        picks.append(mine[torch.randint(len(mine), (repeats - 1,))])
    return held.x[torch.stack(picks)].to(client.device, client.dtype)


def together(client: Client, x: Tensor, companions: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The images (*chains, kB, *input_shape) and labels (*chains, kB) of which the mean is taken, example by example.

    Args:
        x: (*chains, B, *input_shape). companions: (*chains, B, k − 1, *input_shape). y: (*chains, B), whose chains
            broadcast against those of x.
    """
    at = -len(client.input_shape) - 1  # of k, behind B
    images = torch.cat([x.unsqueeze(at), companions], at)
    return images.flatten(at - 1, at), y[..., None].expand(*y.shape, images.shape[at]).flatten(-2)
