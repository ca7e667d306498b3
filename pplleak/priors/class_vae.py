"""A variational autoencoder that is told the class: p(x | y), images near a manifold of their own class."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._fitting import Kept, Training, apart, descended, epochs_of, flat, one_cycle
from pplleak.priors._labelled import require_classes, require_given, require_labelled
from pplleak.priors._store import trained
from pplleak.priors.vae import VAE, frozen, normal, perceptrons
from pplleak.priors.vae import restore as restore_vae
from pplleak.progress import ProgressBar, silent


@dataclass(frozen=True, eq=False)
class ClassVAE:
    """x | y = decoder_y(z) + sd_y ∘ ε,   z ~ Normal(0, I),   ε ~ Normal(0, I)    (Sohn, Lee & Yan 2015)

    The networks of the classes differ in the biases of their first layers, as they would had they been given y beside
    their input: at a known class, all this is an ordinary VAE.

    common          the VAE of no class; its sd is not used
    encoder_biases  (classes, hidden), added in the encoder's first layer; decoder_biases: the same in the decoder's
    sds             (classes, pixels)
    labels          (…, batch), whose images `sample` draws: `of_class` sets them
    """

    common: VAE
    encoder_biases: Tensor
    decoder_biases: Tensor
    sds: Tensor
    labels: Tensor | None = None
    bound: ClassVar[bool] = True  # log_prob lies below the log-density

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.common.input_shape

    @property
    def latents(self) -> int:
        return self.common.latents

    def of_class(self, y: Tensor) -> ClassVAE:
        """p(x | y) for labels y (…, batch); raises BadInput for a label that no class here has."""
        return replace(self, labels=require_classes("class_vae", y, len(self.sds)))

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z, e and x; x (…, *chains, batch_size, *input_shape), where … are the leading dimensions of y."""
        z = pyro.sample("z", self.latent(batch_size))
        e = pyro.sample("e", self.noise(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z, e))
        return x

    def latent(self, batch_size: int = 1) -> TorchDistribution:
        """z ~ Normal(0, I), event shape (batch_size, latents)."""
        return self.common.latent(batch_size)

    def noise(self, batch_size: int = 1) -> TorchDistribution:
        """ε ~ Normal(0, I), event shape (batch_size, pixels)."""
        return self.common.noise(batch_size)

    def decode(self, z: Tensor, e: Tensor) -> Tensor:
        """z (*chains, batch, latents), ε (*chains, batch, pixels) -> x (…, *chains, batch, *input_shape)."""
        y = require_given("class_vae", self.labels)
        hidden = self.common.decoder[0](z.to(self.sds.dtype)) + self.decoder_biases[y]
        x = self.common.decoder[1:](hidden) + self.sds[y] * e.to(self.sds.dtype)
        return x.unflatten(-1, self.input_shape)

    def given(self, k: int) -> VAE:
        """The VAE of class k."""
        encoder = _shifted(self.common.encoder, self.encoder_biases[k])
        return VAE(encoder, _shifted(self.common.decoder, self.decoder_biases[k]), self.sds[k], self.input_shape)

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), every class as likely as any other, by torch's generator."""
        of = self.of_class(torch.randint(len(self.sds), (count,), device=self.sds.device))
        with torch.no_grad():
            return of.decode(of.latent(count).sample(), of.noise(count).sample())

    def log_prob(self, x: Tensor, particles: int = 200) -> Tensor:
        """A bound from below on log (1/K) Σ_y p(x | y), for x (N, *input_shape); (N,), float64."""
        return self.log_prob_each(x, particles).logsumexp(-1) - math.log(len(self.sds))

    def log_prob_each(self, x: Tensor, particles: int = 200) -> Tensor:
        """Bounds from below on log p(x | y) for every class, as `VAE.log_prob`; (N, classes), float64."""
        return torch.stack([self.given(k).log_prob(x, particles) for k in range(len(self.sds))], -1)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it."""
        common = {f"common.{n}": t for n, t in self.common.tensors().items()}
        return common | {n: getattr(self, n) for n in ("encoder_biases", "decoder_biases", "sds")}


def _shifted(network: nn.Sequential, biases: Tensor) -> nn.Sequential:
    """A network with other biases in its first layer."""
    first, *others = network
    assert isinstance(first, nn.Linear)
    with torch.device("meta"):
        made = nn.Linear(first.in_features, first.out_features)
    made.load_state_dict({"weight": first.weight, "bias": first.bias + biases}, assign=True)
    return nn.Sequential(made, *others).requires_grad_(False)


def prior(like: Like, *, reference: str | Tensor = "digits", labels: Tensor | None = None, file: str = "") -> ClassVAE:
    """The fitted VAE of a file, or one that is fitted to public images with their labels, once, and kept.

    Args:
        reference: the public images that it is fitted to where no file is named: a name or a folder of `pplleak.data`,
            or a tensor of them.
        labels: theirs, (N,), where the images are a tensor; a name knows its own.
        file: a VAE of `pplleak prior fit class_vae`, by name or path.
    """
    shape = tuple(like.input_shape)
    fitted: ClassVAE = trained("class_vae", file, reference, shape, like.dtype, like.device, labels)
    return fitted


def fit(
    images: Tensor,
    labels: Tensor,
    *,
    latents: int = 16,
    hidden: int = 256,
    floor: float = 0.02,
    epochs: int = 250,
    steps: int = 8000,
    batch: int = 128,
    lr: float = 5e-3,
    seed: int = 0,
    progress: ProgressBar = silent,
    kept: Kept | None = None,
) -> ClassVAE:
    """Maximise the evidence lower bound:

        Σ_n E_q(z | x_n, y_n) [log p(x_n | z, y_n)] − KL(q(z | x_n, y_n) ‖ Normal(0, I))

    Args:
        images: (N, *input_shape), pixels in [0, 1]. labels: (N,).
        latents: dimensions of z.
        hidden: width of the two hidden layers of encoder and decoder.
        floor: the least sd of a pixel, in pixel units (constant pixels exist: borders).
        epochs: passes over the images,
        steps: or so many optimisation steps, whichever ends first.
        batch: images a step.
        lr: Adam's highest learning rate, reached after a tenth of the steps; it decays to zero by a cosine.
        kept: where the state is kept, to go on from (`pplleak.priors._fitting`).

    Raises:
        Interrupted: Ctrl-C, with the networks as they are; a plain KeyboardInterrupt before the first epoch's end.
    """
    require_positive(latents=latents, hidden=hidden, floor=floor, epochs=epochs, steps=steps, batch=batch, lr=lr)
    require_labelled("class_vae", images, labels)
    x, y, classes = flat(images, "class_vae").float(), labels.long(), int(labels.max()) + 1
    with apart(seed):
        encoder, decoder = perceptrons(x.shape[1], latents, hidden)
        networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        to_code, to_image = (nn.Parameter(torch.zeros(classes, hidden)) for _ in range(2))
        excess = nn.Parameter((x.std(0) / 2 + 0.01).log().repeat(classes, 1))  # sd_y = floor + exp(excess_y)
        for name, own in (("encoder_biases", to_code), ("decoder_biases", to_image), ("excess", excess)):
            networks.register_parameter(name, own)

        def loss(part: Tensor) -> Tensor:
            """Minus the bound of a batch, an image."""
            of = y[part]
            q = normal(encoder[1:](encoder[0](x[part]) + to_code[of]))
            mean = decoder[1:](decoder[0](q.rsample()) + to_image[of])
            p = dist.Normal(mean, floor + excess[of].exp()).log_prob(x[part]).sum(-1)
            return (torch.distributions.kl_divergence(q, dist.Normal(torch.zeros(latents), 1.0)).sum(-1) - p).mean()

        def fitted() -> ClassVAE:
            sds = (floor + excess.exp()).detach()
            common = VAE(encoder.eval(), decoder.eval(), sds.mean(0), tuple(images.shape[1:]))
            return ClassVAE(frozen(common), to_code.detach(), to_image.detach(), sds)

        each, epochs = epochs_of(len(x), batch, epochs, steps)
        adam = torch.optim.Adam(networks.parameters(), lr=lr)
        training = Training(networks, adam, one_cycle(adam, lr, each * epochs))
        found: ClassVAE = descended(fitted, loss, training, len(x), batch, epochs, stage="class_vae", label="VAE",
                                    progress=progress, kept=kept)  # fmt: skip
        return found


def restore(tensors: dict[str, Tensor], input_shape: tuple[int, ...], dtype: torch.dtype) -> ClassVAE:
    """The VAE that `tensors()` came from, in precision `dtype`; raises BadInput where the tensors are none's."""
    own = {n.removeprefix("common."): t for n, t in tensors.items() if n.startswith("common.")}
    common = restore_vae(own, input_shape, dtype)
    sds, pixels, hidden = tensors["sds"], math.prod(input_shape), common.decoder[0].out_features
    to_code, to_image = tensors["encoder_biases"], tensors["decoder_biases"]
    if (
        sds.dim() != 2
        or not len(sds)
        or sds.shape[1] != pixels
        or {to_code.shape, to_image.shape} != {(len(sds), hidden)}
    ):
        raise BadInput("the tensors of its classes have other shapes")
    if not bool((sds > 0).all()):
        raise BadInput("the sd of its pixels are not all positive")
    return ClassVAE(common, to_code.to(dtype), to_image.to(dtype), sds.to(dtype))
