"""An auto-encoder's anomaly score: a Gibbs prior, known up to its normaliser only."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
from torch import Tensor

from pplleak.errors import require_positive
from pplleak.priors._contract import Like
from pplleak.priors.tv import TotalVariation
from pplleak.priors.uniform import Box
from pplleak.priors.uniform import prior as box
from pplleak.priors.vae import VAE
from pplleak.priors.vae import prior as fitted


@dataclass(frozen=True, eq=False)
class OnBox:
    """p(x) ∝ exp(−weight ‖x − D(E(x))‖² − tv TV(x)) on the pixel box    (Sun et al. 2024, GI-PIP, section 3)

    ‖x − D(E(x))‖² is the score by which an auto-encoder tells what is unlike the images that it was trained on. The
    auto-encoder is that of the prior `vae` without its noise: E the mean of q(z | x), D its decoder. It gives small
    scores to images near its manifold, and says nothing of where on it they are likely.
    """

    base: Box
    vae: VAE
    weight: float
    variation: TotalVariation | None

    def __post_init__(self) -> None:
        require_positive(weight=self.weight)

    def energy(self, x: Tensor) -> Tensor:
        """weight ‖x − D(E(x))‖² + tv TV(x) for x (*chains, batch, *input_shape), summed over the batch; (*chains,)."""
        pixels = x.flatten(-len(self.vae.input_shape))
        mean, _ = self.vae.encoder(pixels.to(self.vae.sd.dtype)).chunk(2, -1)
        score = self.weight * (pixels - self.vae.decoder(mean)).square().sum((-2, -1))
        return score + self.variation.energy(x) if self.variation else score

    def sample(self, batch_size: int = 1) -> Tensor:
        """Site x (*chains, batch_size, *input_shape) and the factor anomaly.

        Pyro ignores factors where nothing is observed: unconditioned draws are those of the flat prior.
        """
        x = self.base.sample(batch_size)
        pyro.factor("anomaly", -self.energy(x))
        return x


def prior(
    like: Like,
    *,
    reference: str | Tensor = "digits",
    weight: float = 1.0,
    tv: float = 0.0,
    file: str = "",
) -> OnBox:
    """The anomaly score of an auto-encoder that is fitted to public images, once, and kept, on the box of the
    client's images.

    Args:
        reference: the public images that it is fitted to where no file is named: a name or a folder of `pplleak.data`,
            or a tensor of them.
        weight: of the score, in nats per squared pixel unit.
        tv: weight of the total variation beside it, in nats per pixel unit: GI-PIP has both. 0: none.
        file: a VAE of `pplleak prior fit vae`, by name or path.
    """
    variation = TotalVariation(tv, smoothing=0.01) if tv else None
    return OnBox(box(like), fitted(like, reference=reference, file=file), weight, variation)
