"""Gaussian noise of a width for each layer, or for each entry."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplleak.channels._base import Channel, each, require_each
from pplleak.client import Client
from pplleak.client.update import Update
from pplleak.errors import BadInput, require_positive


class Weighted(Channel):
    """g_i = u_i + σ_i ε_i: Gaussian noise of another width for each layer, or for each entry.

        log p(g | u) = −Σ_i (g_i − u_i)² / 2σ_i² − Σ_i log σ_i − (D/2) log 2π

    Matching gradients with layer weights w_l is this likelihood with σ_l = w_l^(-1/2). Lazy in every layer whose
    entries share one σ, and in every linear layer of a single example.

    Args:
        update: u(x, y), as `client.update` returns it.
        sigmas: σ_i, (D,); `by_layer` makes them from one number a layer.
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
        sigmas: tuple[float, ...] = (0.1,),
    ) -> Weighted:
        """The channel of a client's layers.

        Args:
            sigmas: the noise's standard deviation for each of the client's parameter tensors, or one for all.
        """
        return cls(update, by_layer(client, sigmas))

    @classmethod
    def require(cls, *, sigmas: tuple[float, ...]) -> None:  # type: ignore[override]
        require_each(sigmas=sigmas)

    def __init__(self, update: Update, sigmas: Tensor) -> None:
        if sigmas.shape != (update.size,):
            raise BadInput(f"sigmas must have one entry for each of the update, ({update.size},), not "
                           f"{tuple(sigmas.shape)}; channels.by_layer spreads one a layer")  # fmt: skip
        if not (sigmas.isfinite() & (sigmas > 0)).all():
            raise BadInput("sigmas must all be positive numbers")
        self.sigmas = sigmas.double()
        super().__init__(update, sigmas=sigmas)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        u = self.updates(sample_shape)
        return u + self.sigmas.to(u.dtype) * torch.randn_like(u)

    def log_prob(self, value: Tensor) -> Tensor:
        constant = self.sigmas.log().sum() + 0.5 * self.update.size * math.log(2 * math.pi)
        return -0.5 * self.sqdist(value, self.sigmas**-2) - constant


def by_layer(client: Client, sigmas: list[float] | tuple[float, ...]) -> Tensor:
    """One σ for each of the client's parameter tensors, in the order of `client.layers`, spread to (D,) in float64.

    A single σ is that of all.
    """
    found = each(client, "sigmas", sigmas)
    names = client.layers if len(sigmas) > 1 else list(client.layers)[:1]
    require_positive(**{f"the sigma of {name}": s for name, s in zip(names, sigmas, strict=True)})
    sizes = torch.tensor([shape.numel() for shape in client.layers.values()], device=client.device)
    return found.repeat_interleave(sizes, output_size=client.update_size)
