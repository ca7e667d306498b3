"""DP-FedAvg: the whole update of a user is clipped, and Gaussian noise hides what one user adds."""

from __future__ import annotations

import torch
from torch import Tensor

from pplleak.channels._base import Channel
from pplleak.channels.gaussian import Gaussian
from pplleak.client.update import Update
from pplleak.errors import require_positive


class DPFedAvg(Channel):
    """g = u min(1, C / ‖u‖) + z C ε,  ε ~ Normal(0, I)

        p(g | u) = Normal(g; u min(1, C / ‖u‖), (z C)² I)

    where u is all that a user computes in a round, a gradient or a movement of the weights (FlatClip of McMahan et al.
    2018, algorithm 1). In their algorithm the server adds the noise to the sum over the users of a round; this is what
    an adversary is left with who sees that sum and knows the updates of all other users, as differential privacy takes
    him to. `dpsgd` clips examples, and protects an example; this protects a user. Lazy: a norm, and that of `gaussian`.

    Args:
        update: u(x, y), as `client.update` returns it.
        noise_multiplier: z, the noise's standard deviation per entry, in units of the clip. Positive.
        clip: C, the norm that the update is clipped to, in its own units. Positive.
    """

    has_rsample = True

    def __init__(self, update: Update, *, noise_multiplier: float = 0.1, clip: float = 1.0) -> None:
        require_positive(noise_multiplier=noise_multiplier, clip=clip)
        self.sigma = noise_multiplier * clip
        kept = clip / update.sqnorm().clamp(min=clip**2).sqrt()
        self.clipped = Gaussian(update.scaled(kept[..., None].expand(update.per_example_sqnorm().shape)), self.sigma)
        super().__init__(update, noise_multiplier=noise_multiplier, clip=clip)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.clipped.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.clipped.log_prob(value)
