"""What a client in half precision rounds off, as noise of each tensor's own width, which is known nearly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pplleak.channels._base import Channel, Sigma, each, per_chain, require_each, require_sigma
from pplleak.client import Client
from pplleak.client.update import Update


class Rounded(Channel):
    """g_l = u_l + σ_l τ_l ε_l for every parameter tensor l, with ε ~ Normal(0, I) and τ_l² = ν_l / χ²(ν_l), one for all
    of its D_l entries: a multivariate t.

        log p(g | u) = Σ_l log Γ((ν_l + D_l)/2) − log Γ(ν_l/2) − (D_l/2) log πν_lσ_l²
                           − ((ν_l + D_l)/2) log(1 + ‖g_l − u_l‖² / ν_lσ_l²)

    Rounding errors of a tensor are large or small together, from example to example: σ_l is their usual size and ν_l
    says how far it may be off, so that ‖g_l − u_l‖² / D_lσ_l² ~ F(D_l, ν_l). That the errors of a tensor are
    independent but for τ_l is an approximation. As lazy as `Gaussian`.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigma: σ, root mean square of σ_l over all entries, in the gradient's own units. Positive.
        widths: (L,), σ_l up to a factor, which σ sets.
        dof: (L,), ν_l.
        slices: of the flat update, one a tensor.

    Source: the t as a mixture of Gaussians, Lange, Little and Taylor, Robust Statistical Modeling Using the t
    Distribution, JASA 1989, equations 1 to 3.
    """

    has_rsample = True

    @classmethod
    def of(  # type: ignore[override]  # settings by name, as a constructor has them
        cls,
        update: Update,
        client: Client,
        batch_size: int,
        public: Tensor | None,
        *,
        sigma: Sigma = 0.1,
        widths: tuple[float, ...] = (1.0,),
        dof: tuple[float, ...] = (10.0,),
    ) -> Rounded:
        """The channel of a client's tensors.

        Args:
            sigma: the noise's root mean square over all entries, in the gradient's own units.
            widths: that of each of the client's parameter tensors up to a common factor, or one number: the same.
            dof: degrees of freedom with which each tensor's width is known, or one number for all.
        """
        wide, known = (each(client, n, v) for n, v in (("widths", widths), ("dof", dof)))
        return cls(update, sigma, widths=wide, dof=known, slices=tuple(client.slices.values()))

    @classmethod
    def require(cls, *, sigma: Sigma, widths: tuple[float, ...], dof: tuple[float, ...]) -> None:  # type: ignore[override]
        require_sigma(sigma)
        require_each(widths=widths, dof=dof)

    def __init__(self, update: Update, sigma: Sigma, *, widths: Tensor, dof: Tensor, slices: Sequence[slice]) -> None:
        require_sigma(sigma)
        self.sigma, self.slices = sigma, tuple(slices)
        self.dof = dof.double()
        self.sizes = torch.tensor([s.stop - s.start for s in self.slices], device=dof.device)
        square = widths.double().square()
        self.widths = (square / ((self.sizes * square).sum() / update.size)).sqrt()
        super().__init__(update, sigma=sigma, widths=widths, dof=dof, slices=self.slices)

    def spread(self, like: Tensor) -> Tensor:
        """σ_i of every entry, (*chains, D) in float64."""
        sigmas = per_chain(self.sigma, like)[..., None] * self.widths
        return sigmas.repeat_interleave(self.sizes, -1, output_size=self.update.size)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        chi2 = 2 * torch._standard_gamma((self.dof / 2).expand(*u.shape[:-1], -1))
        tau = (self.dof / chi2).sqrt().repeat_interleave(self.sizes, -1, output_size=u.shape[-1])
        return u + (self.spread(u) * tau).to(u.dtype) * torch.randn_like(u)

    def log_prob(self, value: Tensor) -> Tensor:
        if value.dim() == 1:
            square = self.update.sqdists(value, self.slices)
        else:
            residual = (value.double() - self.update.materialise().double()).square()
            square = torch.stack([residual[..., s].sum(-1) for s in self.slices], -1)
        scale = self.dof * (per_chain(self.sigma, value)[..., None] * self.widths).square()
        half = (self.dof + self.sizes) / 2
        constant = torch.lgamma(half) - torch.lgamma(self.dof / 2) - self.sizes / 2 * (scale * math.pi).log()
        return (constant - half * torch.log1p(square / scale)).sum(-1)
