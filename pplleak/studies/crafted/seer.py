"""Weights trained together with a secret decoder, which finds one example of a batch in its gradient (SEER).

With g_b(θ) = ∇θ ℓ(x_b, y_b), a projection D (k, update_size) that nobody else knows, a decoder r and the brightest
image x* of a batch (a property of which most batches have one example that stands out), weights, projection and decoder
are trained together on the mean over batches of

    ‖r(D Σ_b g_b(θ)) − x*‖² / n + ‖r(D g*(θ)) − x*‖² / n + α log(1 + ‖Σ_{b ≠ *} D g_b(θ)‖² / ‖D g*(θ)‖²)

with n the pixels of an image, by Adam over θ, D and r, so that the other examples' gradients cancel or vanish in D's
few directions and nowhere else: no layer's gradient looks like that of one example, nor do the weights look alike.
`inference/seer.py` decodes.

Source: Garov, Dimitrov, Jovanović and Vechev, Hiding in Plain Sight: Disguising Data Stealing Attacks in Federated
Learning, ICLR 2024 (secret projection, decoder, property of brightness, both losses; that the others are measured
relative to the one, by a logarithm, is a choice made here; batch normalisation and residual networks, on which the
paper works, are left out, and the paper was not at hand in full).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pplleak.client import Client, weights
from pplleak.client.loss import require_cross_entropy
from pplleak.density.secret_decoder import decoded
from pplleak.errors import BadInput, require_positive, require_seed
from pplleak.progress import ProgressBar, silent

HIDDEN = 256  # units of r
QUIET = 0.01  # α


@dataclass(frozen=True, eq=False)
class Trained:
    """What `weights.state` names, and the decoder's tensors; of the last hundred steps, the mean squared error of a
    pixel of the brightest image, decoded from its batch's gradient (loss), and that of those images' mean (baseline).
    """

    weights: dict[str, Tensor]
    decoder: dict[str, Tensor]
    loss: float
    baseline: float


def train(
    client: Client,
    public: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 8,
    steps: int = 2000,
    batches: int = 4,
    directions: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
    progress: ProgressBar = silent,
) -> Trained:
    """Weights and their decoder for batches of one size.

    Args:
        public: images of the same kind, (N, *input_shape). labels: theirs, (N,).
        steps: of Adam, each on so many new `batches`. directions: k.

    Raises:
        BadInput: no cross entropy; a client that trains; fewer images than a batch; a training that diverges.
    """
    require_positive(batch_size=batch_size, steps=steps, batches=batches, directions=directions, lr=lr)
    require_seed(seed)
    require_cross_entropy(client.loss, "the decoder is trained on gradients")
    if client.local is not None:
        raise BadInput("the decoder is trained on gradients, and this client shares local training")
    if len(public) < batch_size:
        raise BadInput(f"{len(public)} public images are no batch of {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    given = {n: t.detach().clone() for n, t in weights.state(client.network).items()}
    theta = {n: given[n].float().requires_grad_() for n in client.layers}
    fixed = {n: t for n, t in given.items() if n not in theta}
    images, pixels = public.to(client.device).float(), public[0].numel()
    sizes = {"project": (directions, client.update_size), "first": (HIDDEN, directions), "second": (pixels, HIDDEN)}
    decoder = {n: torch.randn(s, generator=generator) / s[1] ** 0.5 for n, s in sizes.items()}
    mean = images.mean(0).flatten()
    decoder |= {"first bias": torch.zeros(HIDDEN), "second bias": torch.logit(mean.clamp(0.02, 0.98))}
    decoder = {n: t.to(client.device).requires_grad_() for n, t in decoder.items()}

    def loss(theta: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(client.network, {**fixed, **theta}, (x[None],))
        return nn.functional.cross_entropy(logits, y[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    learnt = [*theta.values(), *decoder.values()]
    optimiser = torch.optim.Adam(learnt, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, int(steps))
    last: list[float] = []
    seldom: list[Tensor] = []
    for _ in progress("steps", int(steps)):
        picks = torch.randint(len(images), (batches, batch_size), generator=generator).to(client.device)
        x, y = images[picks], labels.to(client.device)[picks]
        brightest = x.flatten(2).mean(2).argmax(1)[:, None]
        found = each(theta, x.flatten(0, 1), y.flatten())
        seen = torch.cat([found[n].flatten(1) for n in theta], 1) @ decoder["project"].mT
        seen = seen.reshape(batches, batch_size, -1)
        own, every = seen.take_along_dim(brightest[..., None], 1)[:, 0], seen.sum(1)
        wanted = x.flatten(2).take_along_dim(brightest[..., None], 1)[:, 0]
        errors = [(decoded(decoder, v) - wanted).square().mean() for v in (every, own)]
        share = (every - own).square().sum(1) / own.square().sum(1).clamp(min=1e-12)
        value = errors[0] + errors[1] + QUIET * share.log1p().mean()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        schedule.step()
        last, seldom = [*last[-99:], float(errors[0].detach())], [*seldom[-99:], wanted]
    if not all(e == e for e in last):
        raise BadInput("the training of weights and decoder diverged: take a smaller lr")
    made = {**fixed, **{n: t.detach().to(given[n].dtype) for n, t in theta.items()}}
    made = {n: made[n] for n in given}
    held = {n: t.detach() for n, t in decoder.items()}
    baseline = float(torch.cat(seldom).var(0, correction=0).mean())
    return Trained(made, held | {"mean": mean}, sum(last) / len(last), baseline)
