"""Concealing samples (DCS; Wu et al. 2024): every private example shares its gradient with one made to hide it.

    c = argmin over c of  1 − cos(u(c, y′), u(x, y)) + exp(−λ_x ‖c − x‖) + λ_f ‖f(c) − f(x)‖ / ‖f(x)‖
    q = λ e(y′) + (1 − λ) e(y)
    g = ∇θ (1/B) Σ_b [ℓ(f(c_b), q_b) + ℓ(f(x_b), y_b)] / 3            divided by 2 where λ is 0 or 1

f are the logits, u the gradient, x a private image and y′ the label of the image p at which c begins, drawn from
others: c₀ = λ p + (1 − λ) x. c descends by Adam, in pixel units and free of bounds, at a learning rate that falls to a
tenth after 3/8, 5/8 and 7/8 of the steps, and stops once ‖c − x‖ is large enough on average.

The paper is of any number of sensitive examples; here all of a batch are. Norms are those of pixels in [0, 1]; the
authors' are of normalised ones. Left out: the projection of g to where it does not point against the gradient of the
batch, which is needed only where it does.

Source: Wu, Hayat, Zhou and Harandi, Concealing Sensitive Samples against Gradient Leakage in Federated Learning, AAAI
2024; the equation's details, the divisor and the defaults are those of the authors' code (`dlg/defenses/dcs.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pplleak.client import Client
from pplleak.client.loss import DEFAULT
from pplleak.errors import BadInput, require_positive
from pplleak.federation.defences import Attacks
from pplleak.federation.defences._others import images_of

ATTACKS = Attacks("inverting_gradients", "Wu et al. 2024", "conceal")
WEIGHT_X, WEIGHT_F = 0.01, 0.01  # λ_x and λ_f of the authors' code, for MNIST
DROPS = (3 / 8, 5 / 8, 7 / 8)  # shares of the steps after which the learning rate falls to a tenth
TINY = 1e-12


def share(
    client: Client,
    x: Tensor,
    y: Tensor,
    *,
    mixing: float = 0.7,
    steps: int = 100,
    lr: float = 0.1,
    far: float = 150.0,
    others: str = "digits",
) -> Tensor:
    """The gradient of the private examples and the concealing ones, (D,).

    Args:
        mixing: λ, the share of the other image and label in what conceals, in [0, 1].
        steps: of the descent; the authors take 500 to 1000.
        lr: of the descent's Adam, in pixel units.
        far: ‖c − x‖ at which the descent stops, on average over the batch, in pixel units.
        others: whose images it begins at: digits, mnist, cifar10 or a FOLDER ($PPLLEAK_DATA_ROOT).
    """
    require(client, mixing)
    require_positive(steps=steps, lr=lr, far=far)
    held = images_of(others, client)
    picks = torch.randint(len(held), (len(y),))
    start, labels = held.x[picks].to(client.device, client.dtype), held.y[picks].to(client.device)
    x = x.to(client.dtype)
    c = concealing(client, x, y, mixing * start + (1 - mixing) * x, labels, steps=steps, lr=lr, far=far)
    return client.update(torch.cat([c, x]), targets(client, y, labels, mixing)).materialise()


def require(client: Client, mixing: float) -> None:
    """Raise BadInput for a share outside [0, 1], or a loss whose labels cannot be mixed and weighed."""
    if not 0 <= mixing <= 1:
        raise BadInput(f"mixing must lie between 0 and 1 (the share of the other image), not {mixing}")
    if client.loss != DEFAULT:
        raise BadInput(f"conceal mixes labels as a plain cross entropy takes them, and the loss is {client.loss}")
    if client.mixes_batch:
        raise BadInput("conceal adds examples to a batch that the network mixes (BatchNorm in train mode): freeze the "
                       "statistics with .eval()")  # fmt: skip


def concealing(
    client: Client, x: Tensor, y: Tensor, start: Tensor, labels: Tensor, *, steps: int, lr: float, far: float
) -> Tensor:
    """c, (B, *input_shape), from c₀ on; labels y′ (B,)."""
    with torch.enable_grad():
        c = start.clone().requires_grad_()
        aim, logits = client.update(x, y).materialise().detach(), client.network(x).detach()
        adam = torch.optim.Adam([c], lr)
        schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [max(1, int(s * steps)) for s in DROPS], gamma=0.1)
        for _ in range(steps):
            u = client.update(c, labels)
            cosine = u.inner(aim) / (u.sqnorm().sqrt() * aim.double().norm() + TINY)
            away = (c - x).flatten(1).norm(dim=1).mean()
            changed = ((client.network(c) - logits).norm(dim=1) / logits.norm(dim=1)).mean()
            (slope,) = torch.autograd.grad(1 - cosine + torch.exp(-WEIGHT_X * away) + WEIGHT_F * changed, c)
            c.grad = slope
            adam.step()
            schedule.step()
            if away > far:
                break
    return c.detach()


def targets(client: Client, y: Tensor, labels: Tensor, mixing: float) -> Tensor:
    """What the concealing and the private examples are labelled, (*chains, 2B, num_classes), times what makes of their
    mean the sum over 3 or 2: a cross entropy is linear in it. Labels (*chains, B)."""
    own, theirs = (one_hot(t, client.num_classes).to(client.dtype) for t in (y, labels))
    own, theirs = torch.broadcast_tensors(own, theirs)
    divisor = 2 if mixing in (0, 1) else 3
    return 2 / divisor * torch.cat([mixing * theirs + (1 - mixing) * own, own], -2)
