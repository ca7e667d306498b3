"""DP-SGD: every example's gradient is clipped, and Gaussian noise hides what one of them adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pplleak.channels._base import Channel
from pplleak.channels.gaussian import Gaussian
from pplleak.client import Client
from pplleak.client.loss import get
from pplleak.client.update import Update
from pplleak.errors import BadInput, require_positive


class DPSGD(Channel):
    """g = (1/B) [Σ_b clip(∇ℓ_b) + z C ε],  clip(v) = v min(1, C / ‖v‖),  ε ~ Normal(0, I)

    (Abadi et al. 2016, algorithm 1), B examples. The client's loss is a mean, so its update is u = Σ_b u_b with
    u_b = ∇ℓ_b / B, and

        w_b = min(1, C / (B ‖u_b‖))      p(g | u) = Normal(g; Σ_b w_b u_b, (z C / B)² I)

    A client that samples its batch (Poisson) divides by the size that it expects, the lot L, instead of B: g is then
    B / L times that, noise included.

    The clipped update is as lazy as u: norms and distances come from the layers' inputs and output gradients. B is the
    number of examples that the update tells apart: `require_examples` refuses networks where it is not the batch's.

    Args:
        update: u(x, y), as `client.update` returns it.
        noise_multiplier: z, the noise's standard deviation in units of the clip. Positive.
        clip: C, the norm that an example's gradient ∇ℓ_b is clipped to. Positive.
        lot: L, what the sum is divided by; 0 divides by the examples that are there.
    """

    has_rsample = True

    @classmethod
    def of(cls, update: Update, client: Client, batch_size: int, public: str | Tensor | None, **settings: Any) -> DPSGD:
        """The channel of a client whose examples have gradients of their own; raises BadInput for others."""
        require_examples(client, batch_size)
        return cls(update, **settings)

    def __init__(self, update: Update, *, noise_multiplier: float = 0.1, clip: float = 1.0, lot: int = 0) -> None:
        require_positive(noise_multiplier=noise_multiplier, clip=clip)
        if lot < 0:
            raise BadInput(f"lot must be a number of examples, or 0 for those that are there, not {lot}")
        sqnorm = update.per_example_sqnorm()
        batch = sqnorm.shape[-1]
        lot = lot or batch
        weights = clip / (batch**2 * sqnorm).clamp(min=clip**2).sqrt() * (batch / lot)
        self.sigma = noise_multiplier * clip / lot
        self.clipped = Gaussian(update.scaled(weights), self.sigma)
        super().__init__(update, noise_multiplier=noise_multiplier, clip=clip, lot=lot)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.clipped.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.clipped.log_prob(value)


def require_examples(client: Client, batch_size: int) -> None:
    """Raise BadInput where an example has no gradient of its own, which DP-SGD could clip, or no equal part."""
    if client.withheld:
        raise BadInput("channel dpsgd clips the whole gradient of an example, and this client shares parts of it: say "
                       "which noise is on them, as of channel gaussian")  # fmt: skip
    loss = get(client.loss)
    if loss.weights or loss.reduction != "mean":
        raise BadInput(f"channel dpsgd averages over the clipped examples, and the loss is {client.loss}: take a mean "
                       "without weights of the classes")  # fmt: skip
    if client.mixes_batch and batch_size > 1:
        raise BadInput(
            "channel dpsgd clips each example's gradient, but the network mixes its batch (BatchNorm in train mode): "
            "use batch size 1, or freeze the statistics with .eval()"
        )
