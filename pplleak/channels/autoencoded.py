"""Learned compression: an autoencoder of gradients, of which the server is sent the code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pplleak import data, memory
from pplleak.channels import _simulated
from pplleak.channels._base import Channel, Sigma, per_chain, per_entry, require_sigma
from pplleak.client import Client
from pplleak.client.update import DenseUpdate, Update
from pplleak.errors import BadInput, require_positive

OUTSIDE = 1e-3  # share of ‖g − mean‖ that single precision may leave beside what the decoder makes of its code
HIDDEN = 64  # units of the encoder's and of the decoder's hidden layer
TINY = 1e-150
STEPS, LR = 60, 2e-2  # of Adam on all simulated updates at once
VANISHING = 1e-6  # of the largest: a direction in which simulated updates vary by rounding alone


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """E: R^D -> R^m and D: R^m -> R^D about the mean of updates, between their r ≥ m leading principal directions.

        a = Bᵀ (u − mean),    E(u) = a_1…m + s_1…m ⊙ W₂ tanh(W₁ (a ⊘ s) + b₁)
        D(c) = mean + B [c, s_m+1…r ⊙ V₂ tanh(V₁ (c ⊘ s_1…m) + d₁)]

    The code is the first m coordinates of what is decoded: Bᵀ (D(c) − mean) gives it back. float64.

    mean     (D,)
    basis    B (D, r), orthonormal columns
    spread   s (r,), the standard deviation along each
    encoder  W₁ (hidden, r), b₁ (hidden,), W₂ (m, hidden)
    decoder  V₁ (hidden, m), d₁ (hidden,), V₂ (r − m, hidden)
    """

    mean: Tensor
    basis: Tensor
    spread: Tensor
    encoder: tuple[Tensor, Tensor, Tensor]
    decoder: tuple[Tensor, Tensor, Tensor]

    @property
    def code(self) -> int:
        """m."""
        return len(self.encoder[2])

    def squeeze(self, a: Tensor) -> Tensor:
        """E(u) (…, m) of u's coordinates a (…, r)."""
        (first, bias, second), m = self.encoder, self.code
        bent = torch.tanh(a / self.spread @ first.mT + bias) @ second.mT
        return a[..., :m] + self.spread[:m] * bent

    def stretch(self, c: Tensor) -> Tensor:
        """The coordinates (…, r) of D(c), of codes c (…, m)."""
        (first, bias, second), m = self.decoder, self.code
        bent = torch.tanh(c / self.spread[:m] @ first.mT + bias) @ second.mT
        return torch.cat([c, self.spread[m:] * bent], -1)

    def missed(self, a: Tensor) -> Tensor:
        """Σ ‖a − D(E(a))‖² of coordinates a (N, r), as a share of Σ ‖a‖²."""
        return (self.stretch(self.squeeze(a)) - a).square().sum() / a.square().sum().clamp(min=TINY)

    def encode(self, u: Tensor) -> Tensor:
        """E(u), (…, m) of (…, D)."""
        return self.squeeze(self.coordinates(u))

    def decode(self, c: Tensor) -> Tensor:
        """D(c), (…, D) of (…, m)."""
        return self.mean + self.stretch(c) @ self.basis.mT

    def coordinates(self, v: Tensor) -> Tensor:
        """Bᵀ (v − mean), (…, r) of (…, D)."""
        return (v - self.mean) @ self.basis


class Autoencoded(Channel):
    """c = E(u) + σ ε ∈ R^m,  ε ~ Normal(0, I);  g = D(c), what the server makes of the code that it is sent.

        log p(g | u) = −‖c − E(u)‖² / 2σ² − m log σ − (m/2) log 2π,   c = the first m coordinates of Bᵀ (g − mean)

    E and D are an `Autoencoder` that server and clients share. Its decoder repeats the code among the coordinates that
    it fills in, so that g holds the code, no more and no less: the density is exact, with respect to Lebesgue measure
    on codes. What the code leaves out is not sent, and an adversary has it from the prior alone. It needs entries.

    Source: Abrahamyan, Chen, Bekoulis and Deligiannis, Learned Gradient Compression for Distributed Deep Learning,
    IEEE Trans. Neural Networks and Learning Systems 2021 (LGC), of which the abstract was read: a light autoencoder,
    trained on gradients in the first stage of a training, whose code is sent. Theirs is a convolution along the
    largest entries, with a part that nodes share and one of each node's own; that it acts on principal directions, and
    keeps its code readable, are choices made here. The likelihood is this file's own.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, the noise's standard deviation on each number of the code, in the gradient's own units. Positive.
        coder: E and D.
    """

    has_rsample = True

    @classmethod
    def of(  # type: ignore[override]  # settings by name, as a constructor has them
        cls,
        update: Update,
        client: Client,
        batch_size: int,
        public: str | Tensor | None,
        sigma: float = 0.1,
        *,
        code: int = 32,
        simulated: int = 400,
    ) -> Autoencoded:
        """The channel of an autoencoder that was trained on updates of public images, at the same weights.

        Args:
            sigma: σ, the noise's standard deviation on each number of the code, in the gradient's own units. Positive.
            code: m, the numbers that are sent; fewer where simulated updates do not vary in as many directions.
            simulated: updates that the autoencoder is trained on.
        """
        if public is None:
            raise BadInput("learned compression needs public images, on whose updates its autoencoder is trained")
        images = data.reference(public, client.input_shape)
        return cls(update, sigma, coder=learned(client, images, batch_size, code, simulated))

    @classmethod
    def require(cls, *, sigma: Sigma, code: int, simulated: int) -> None:  # type: ignore[override]
        require_sigma(sigma)
        require_positive(code=code)
        if simulated <= code:
            raise BadInput(f"simulated must be more than the code's {code} numbers, not {simulated}: fewer updates do "
                           "not tell so many directions")  # fmt: skip

    def __init__(self, update: Update, sigma: Sigma, *, coder: Autoencoder) -> None:
        require_sigma(sigma)
        if coder.mean.shape != (update.size,):
            raise BadInput(
                f"the autoencoder is one of updates of {len(coder.mean)} entries, and this has {update.size}"
            )
        self.sigma, self.coder = sigma, coder
        super().__init__(update, sigma=sigma, coder=coder)

    def measured(self) -> DenseUpdate:
        """E(u) as an update of m entries, each of which independent noise hides."""
        return DenseUpdate(self.coder.encode(self.update.materialise().double())[..., None, :])

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        c = self.coder.encode(u.double())
        return self.coder.decode(c + per_entry(self.sigma, c) * torch.randn_like(c)).to(u)

    def log_prob(self, value: Tensor) -> Tensor:
        sigma, m = per_chain(self.sigma, value), self.coder.code
        g, u = self.entries(value)
        c = self.coder.coordinates(g)[..., :m]
        missed, whole = ((g - t).square().sum(-1) for t in (self.coder.decode(c), self.coder.mean))
        if not (missed <= OUTSIDE**2 * (whole + self.coder.mean.square().sum())).all():
            raise BadInput(f"no code of {m} numbers is decoded to the observation: set code and "
                           "simulated, or believe in another channel")  # fmt: skip
        square = (c - self.coder.encode(u)).square().sum(-1)
        return -0.5 * square / sigma**2 - m * (sigma.log() + 0.5 * math.log(2 * math.pi))


@_simulated.remembered
def learned(client: Client, public: Tensor, batch_size: int, code: int, simulated: int) -> Autoencoder:
    """The autoencoder of updates on random public images (N, *input_shape) with random labels, at these weights; the
    same for the same arguments."""
    Autoencoded.require(sigma=1.0, code=code, simulated=simulated)
    memory.require(4 * 8 * simulated * client.update_size, f"simulating {simulated} updates", "simulate fewer")
    return trained(_simulated.updates(client, public, batch_size, simulated).double(), code)


def trained(updates: Tensor, code: int) -> Autoencoder:
    """The autoencoder of updates (N, D), float64: argmin Σ ‖u − D(E(u))‖², climbed to from principal components, the
    best linear one. A quarter of the updates is held out, and says when to stop: it is never worse on them."""
    mean = updates.mean(0)
    centred = updates - mean
    strengths, left = torch.linalg.eigh(centred @ centred.mT / len(updates))  # N × N: there are far fewer than entries
    strengths, left = strengths.flip(0), left.flip(1)
    held = int((strengths > VANISHING**2 * strengths[0].clamp(min=TINY)).sum().item())
    rank = max(1, min(2 * code, held, len(updates) - 1))
    basis = torch.linalg.qr(centred.mT @ left[:, :rank])[0]
    basis = basis * torch.where(basis.gather(0, basis.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    a = centred @ basis
    spread, m = a.square().mean(0).sqrt().clamp(min=TINY), min(code, rank)
    generator = torch.Generator().manual_seed(0)

    def layer(columns: int) -> Tensor:
        return (torch.randn(HIDDEN, columns, dtype=a.dtype, generator=generator) / math.sqrt(columns)).to(a.device)

    weights = [layer(rank), a.new_zeros(HIDDEN), a.new_zeros(m, HIDDEN),
               layer(m), a.new_zeros(HIDDEN), a.new_zeros(rank - m, HIDDEN)]  # fmt: skip
    fitted, kept_out = a[len(a) // 4 :], a[: len(a) // 4]
    best, least = _coder(mean, basis, spread, weights), math.inf
    with torch.enable_grad():
        adam = torch.optim.Adam([w.requires_grad_() for w in weights], LR)
        for _ in range(STEPS):
            made = _coder(mean, basis, spread, weights)
            missed = float(made.missed(kept_out).detach())
            if missed < least:
                best, least = _coder(mean, basis, spread, [w.detach().clone() for w in weights]), missed
            adam.zero_grad()
            made.missed(fitted).backward()
            adam.step()
    return best


def _coder(mean: Tensor, basis: Tensor, spread: Tensor, weights: list[Tensor]) -> Autoencoder:
    a, b, c, d, e, f = weights
    return Autoencoder(mean, basis, spread, (a, b, c), (d, e, f))
