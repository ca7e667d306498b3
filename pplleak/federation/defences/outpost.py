"""Outpost (Wang, Hugh and Li 2023): noise on the entries of largest Fisher information, by the spread of the weights.

    g_l = P_l(u_l) + M_l ⊙ σ_l ε,   ε ~ Normal(0, I),   σ_l = noise · min(1, Var(θ_l))     with probability 1/(1 + βt)
    g   = u                                                                           otherwise, t being the iteration

for each parameter tensor l. P_l keeps the entries of largest magnitude and drops a share `prune` of them; M is 1 on the
groups whose empirical Fisher information F = mean over the first dimension of u_l² (of a weight matrix, one number a
column; of a bias, one) is among the largest share `phi` of all. Var is taken over a tensor's entries: weights that lie
close together are the risk's opposite, so that the risk is read off θ, which the server has.

An entry that is dropped and gets no noise is not sent: it is exactly 0, and says which groups have none. One who knows
(`models/outpost.py`) therefore knows σ of every entry.

Source: Wang, Hugh and Li, More than Enough is Too Much: Adaptive Defenses against Gradient Leakage in Production
Federated Learning, INFOCOM 2023, of which the abstract was read; equations and defaults are those of the authors' code
in their framework Plato (`examples/…/defense/Outpost/perturb.py`). There the perturbed tensors are bound to a loop's
variable and the list that is returned is the one that came in: as published, it shares the gradient as it is. What is
shared here is what it computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.defences import Attacks

ATTACKS = Attacks("inverting_gradients", "Wang et al. 2023, DLG and its successors", "outpost")


def share(
    client: Client,
    x: Tensor,
    y: Tensor,
    *,
    phi: float = 0.4,
    prune: float = 0.8,
    noise: float = 0.8,
    beta: float = 0.125,
    iteration: int = 0,
) -> Tensor:
    """The perturbed gradient, (D,).

    Args:
        phi: the share of the groups that get noise, in (0, 1].
        prune: the share of every tensor's entries that are dropped, in (0, 1).
        noise: of σ_l, in units of min(1, Var(θ_l)).
        beta: β, how fast perturbation becomes rare; 0: it never does.
        iteration: t, which iteration of a round this gradient is: at 0 it always perturbs. The authors' code has t =
            epoch · (batch + 1), counted anew in every round, so that a client that shares a gradient a round stays at
            one t for a whole training.
    """
    require(client, phi, prune, noise, beta, iteration)
    u = client.update(x, y).materialise()
    if not perturbs(beta, iteration):
        return u
    kept, noisy = masks(client, u, phi, prune)
    return u * kept + noisy * widths(client, noise).to(u) * torch.randn_like(u)


def sent(
    client: Client,
    x: Tensor,
    y: Tensor,
    *,
    phi: float = 0.4,
    prune: float = 0.8,
    noise: float = 0.8,
    beta: float = 0.125,
    iteration: int = 0,
) -> Tensor:
    """Which entries are sent, (D,) bool: those that are kept, and those that get noise; arguments as for `share`."""
    u = client.update(x, y).materialise()
    if not perturbs(beta, iteration):
        return torch.ones_like(u, dtype=torch.bool)
    kept, noisy = masks(client, u, phi, prune)
    return kept | noisy


def require(client: Client, phi: float, prune: float, noise: float, beta: float, iteration: int) -> None:
    """Raise BadInput for settings that no client can have, or a network that draws noise of its own."""
    if not 0 < phi <= 1:
        raise BadInput(f"outpost's phi must be above 0 and at most 1 (the share of groups with noise), not {phi}")
    if not 0 < prune < 1:
        raise BadInput(f"outpost's prune must be above 0 and below 1 (the share of entries dropped), not {prune}")
    if noise < 0 or beta < 0 or iteration < 0:
        raise BadInput(f"outpost's noise, beta and iteration must not be negative, not {noise}, {beta}, {iteration}")
    if client.noise_shape is not None:
        raise BadInput("outpost looks at the size of every entry, and this network draws noise for each: take another")


def perturbs(beta: float, iteration: int) -> bool:
    """Whether it perturbs at all, with probability 1/(1 + βt): one coin for `share` and `sent`, so it is thrown by the
    seed of torch's generator and not by its state."""
    coin = torch.Generator().manual_seed(torch.initial_seed() ^ 1)
    return bool(torch.rand((), generator=coin, dtype=torch.float64) < 1 / (1 + beta * iteration))


def widths(client: Client, noise: float) -> Tensor:
    """σ_l of every entry's tensor, (D,), float64."""
    found = []
    for p in client.parameters.values():
        spread = float(p.double().var()) if p.numel() > 1 else 0.0
        found.append(torch.full((p.numel(),), noise * min(1.0, spread), dtype=torch.float64, device=p.device))
    return torch.cat(found)


def masks(client: Client, u: Tensor, phi: float, prune: float) -> tuple[Tensor, Tensor]:
    """Which entries of an update u (D,) are kept, and which get noise: two (D,) of bool."""
    parts = list(client.split(u).values())
    information = [p.square().mean(0) for p in parts]
    least = torch.quantile(torch.cat([f.flatten() for f in information]).double(), 1 - phi)
    kept = [p.abs() >= torch.quantile(p.abs().flatten().double(), prune).to(p) for p in parts]
    noisy = [(f.double() >= least).expand_as(p) for f, p in zip(information, parts, strict=True)]
    return torch.cat([k.flatten() for k in kept]), torch.cat([n.flatten() for n in noisy])


@torch.no_grad()
def believed(client: Client, seen: Tensor | None, sigma: float, noise: float, prune: float) -> Tensor:
    """σ_i of every entry as one knows it who has seen g (D,), (D,), float64: Normal(u_i, σ_i²) is taken for its law.

        σ        where it was sent without noise: another entry of its group is exactly 0
        √(σ_l² + t_l² + σ²)     where it was sent with noise: none of its group is 0
        t_l      where it was not sent: |u_i| is no larger than the smallest entry of its tensor sent without noise

    σ is that of the channel, on all that is sent. Where nothing of a tensor is sent without noise, t_l is what as many
    entries exceed as are kept.
    """
    plain = torch.full((client.update_size,), sigma, dtype=torch.float64, device=client.device)
    if seen is None or bool((seen != 0).all()):
        return plain
    found, spread = [], client.split(widths(client, noise))
    for name, g in client.split(seen.double()).items():
        noisy = (g != 0).all(0).expand_as(g)
        quiet = ~noisy & (g != 0)
        size = g.abs()
        t = size[quiet].min() if bool(quiet.any()) else torch.quantile(size, prune)
        loud = (spread[name].square() + t**2 + sigma**2).sqrt()
        found.append(torch.where(noisy, loud, torch.where(quiet, sigma, t.clamp(min=sigma))).flatten())
    return torch.cat(found)
