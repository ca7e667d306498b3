"""Inf2Guard (Noorbakhsh et al. 2024): a representation trained to say little of its input, behind learned noise.

    r = f(x),   r' = r + σ ⊙ ε,   ε ~ Normal(0, I)            logits c(r')
    ℓ = cross entropy(c(r'), y) + beta · KL(Normal(r, σ²) ‖ Normal(0, I)) / log 2

r are the features that the last linear layer c takes, f is the network before it. Both of the paper's goals are bounds
on mutual information, and both are in ℓ. Utility: −E[cross entropy] is a lower bound of I(r'; y), up to the entropy of
y. Privacy: E[KL] is an upper bound of I(x; r'), with equality where r' is Normal(0, I) over the data (Barber & Agakov
2003; Alemi et al. 2017). σ (F,) is one number a feature, the same for all examples: a parameter of the network, trained
and shared like any other. Every example draws its own ε, in training as in use; without it, ε = 0.

What is protected is the representation, and what is shared is a gradient: that of c holds r', that of f holds x as
well as without the defence, once ε is known. Who knows the defence has ε as a latent variable (`models/precode.py`).

Source: Noorbakhsh, Zhang, Hong and Wang, Inf2Guard: An Information-Theoretic Framework for Learning Privacy-Preserving
Representations against Inference Attacks, USENIX Security 2024 (arXiv 2403.02116), of which the abstract was read and
the authors' code against data reconstruction (`train_model.py`, `Defense/`): r + δ with Gaussian δ or one whose mean
and softplus width are trained, and the classifier's loss at r + δ. There a second network estimates the information of
pairs (x, r) by the Jensen-Shannon bound, out of a batch; a single example's gradient has no pairs, so the bound is
here the closed one above. That δ has mean 0 and no tanh, its place and the defaults are choices made here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplleak.client.last_layer import before_last
from pplleak.errors import require_positive
from pplleak.federation.defences import Attacks

ATTACKS = Attacks("inverting_gradients", "Geiping et al. 2020; the paper's invert representations", "precode")


class Width(nn.Module):
    """σ = log(1 + exp s), the same for every example: forward(r) is (batch, features), as r. A module of its own, for
    the first layer is still the first that holds parameters, and its gradient as telling as without the defence."""

    def __init__(self, features: int, noise: float) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((1, features), math.log(math.expm1(noise))))

    def forward(self, r: Tensor) -> Tensor:
        return F.softplus(self.raw.expand(len(r), -1))


class Guarded(nn.Module):
    """A network with noise of trained width on its features: forward(x, ε) gives logits and β KL of every example.

    noise_shape  of ε for one example, (features,)
    """

    def __init__(self, base: nn.Module, last: str, noise: float, beta: float) -> None:
        super().__init__()
        layer = base.get_submodule(last)
        assert isinstance(layer, nn.Linear)
        self.width = Width(layer.in_features, noise)
        self.base = base  # after it: rules that read labels off the last layer look at the end of the gradient
        self.last, self.beta, self.noise_shape = last, beta, (layer.in_features,)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (batch, num_classes) and β KL (batch,); the logits alone at ε = 0 where no noise is given."""
        kl: list[Tensor] = []

        def perturb(r: Tensor) -> Tensor:
            width = self.width(r)
            kl.append((0.5 * (r.square() + width.square() - 1) - width.log()).sum(1) / math.log(2))
            return r if noise is None else r + width * noise

        handle = self.base.get_submodule(self.last).register_forward_pre_hook(lambda module, inputs: perturb(inputs[0]))
        try:
            logits = self.base(x)
        finally:
            handle.remove()
        return logits if noise is None else (logits, self.beta * kl[0])


def network(
    base: nn.Module, input_shape: tuple[int, ...], num_classes: int, *, noise: float = 0.5, beta: float = 1e-2
) -> nn.Module:
    """The network with its features guarded.

    Args:
        noise: σ that the training begins with, in units of a feature.
        beta: what a bit of the representation's information about the input is worth beside the cross entropy (nats).
    """
    require_positive(**{"inf2guard's noise": noise, "inf2guard's beta": beta})
    return before_last(lambda copy, last: Guarded(copy, last, noise, beta), base, input_shape, num_classes, "inf2guard")
