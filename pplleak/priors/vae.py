"""A variational autoencoder with a pixel residual: images near a learnt manifold, and not only on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._fitting import Kept, Training, apart, descended, epochs_of, flat, one_cycle
from pplleak.priors._store import trained
from pplleak.priors.gaussian import standard_normal
from pplleak.progress import ProgressBar, silent


@dataclass(frozen=True, eq=False)
class VAE:
    """x = decoder(z) + sd ∘ ε,   z ~ Normal(0, I),   ε ~ Normal(0, I)    (Kingma & Welling 2014)

    encoder      x (…, pixels) -> mean and log sd of q(z | x), (…, 2 latents)
    decoder      z (…, latents) -> (…, pixels), inside (0, 1); smooth, so that samplers can follow its gradient
    sd           (pixels,): how far an image may be from the decoder's
    input_shape  of x
    """

    encoder: nn.Sequential
    decoder: nn.Sequential
    sd: Tensor
    input_shape: tuple[int, ...]
    bound: ClassVar[bool] = True  # log_prob lies below the log-density

    @property
    def latents(self) -> int:
        return self.encoder[-1].out_features // 2  # type: ignore[operator, return-value]

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z, e and x; x (*chains, batch_size, *input_shape)."""
        z = pyro.sample("z", self.latent(batch_size))
        e = pyro.sample("e", self.noise(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z, e))
        return x

    def latent(self, batch_size: int = 1) -> TorchDistribution:
        """z ~ Normal(0, I), event shape (batch_size, latents)."""
        return standard_normal(self.sd, batch_size, self.latents)

    def noise(self, batch_size: int = 1) -> TorchDistribution:
        """ε ~ Normal(0, I), event shape (batch_size, pixels)."""
        return standard_normal(self.sd, batch_size, len(self.sd))

    def decode(self, z: Tensor, e: Tensor) -> Tensor:
        """z (*chains, batch, latents), ε (*chains, batch, pixels) -> x (*chains, batch, *input_shape)."""
        x = self.decoder(z.to(self.sd.dtype)) + self.sd * e.to(self.sd.dtype)
        return x.unflatten(-1, self.input_shape)

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        with torch.no_grad():
            return self.decode(self.latent(count).sample(), self.noise(count).sample())

    @torch.no_grad()
    def log_prob(self, x: Tensor, particles: int = 200) -> Tensor:
        """A bound from below on log p(x), tight as the particles grow, for x (N, *input_shape); (N,), float64."""

        def prior(z: Tensor) -> Tensor:
            return dist.Normal(torch.zeros_like(z), 1.0).log_prob(z).double().sum(-1)

        return log_importance(self, x, prior, particles)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it."""
        encoder = {f"encoder.{n}": t for n, t in self.encoder.state_dict().items()}
        return encoder | {f"decoder.{n}": t for n, t in self.decoder.state_dict().items()} | {"sd": self.sd}


def prior(like: Like, *, reference: str | Tensor = "digits", file: str = "") -> VAE:
    """The fitted VAE of a file, or one that is fitted to public images, once, and kept.

    Args:
        reference: the public images that it is fitted to where no file is named: a name or a folder of `pplleak.data`,
            or a tensor of them.
        file: a VAE of `pplleak prior fit vae`, by name or path.
    """
    fitted: VAE = trained("vae", file, reference, tuple(like.input_shape), like.dtype, like.device)
    return fitted


def log_importance(vae: VAE, x: Tensor, prior: Callable[[Tensor], Tensor], particles: int) -> Tensor:
    """A bound from below on log ∫ p(x | z) p(z) dz, for x (N, *input_shape); (N,), float64.

    log (1/K) Σ_k p(x | z_k) p(z_k) / q(z_k | x),   z_k ~ q(z | x)     (Burda et al. 2016, eq. 8)

    Args:
        prior: z (…, latents) -> log p(z) (…,), float64. particles: K.
    """
    rows = []
    for part in x.flatten(1).to(vae.sd.dtype).split(100):
        q = normal(vae.encoder(part))
        z = q.sample((particles,))
        p = dist.Normal(vae.decoder(z), vae.sd).log_prob(part).double().sum(-1)
        rows.append((p + prior(z) - q.log_prob(z).double().sum(-1)).logsumexp(0) - math.log(particles))
    return torch.cat(rows)


def normal(code: Tensor) -> dist.Normal:
    """q(z | x) from the encoder's output (…, 2 latents)."""
    mean, log_sd = code.chunk(2, -1)
    return dist.Normal(mean, log_sd.clamp(-10, 4).exp())


def perceptrons(pixels: int, latents: int, hidden: int) -> tuple[nn.Sequential, nn.Sequential]:
    """An encoder and a decoder of two hidden layers each."""
    encoder = nn.Sequential(
        nn.Linear(pixels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latents)
    )
    decoder = nn.Sequential(
        nn.Linear(latents, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, pixels),
        nn.Sigmoid(),
    )  # fmt: skip
    return encoder, decoder


def fit(
    images: Tensor,
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
) -> VAE:
    """Maximise the evidence lower bound by Pyro's SVI:

        Σ_n E_q(z | x_n) [log Normal(x_n; decoder(z), diag(sd²))] − KL(q(z | x_n) ‖ Normal(0, I))

    Args:
        images: (N, *input_shape), pixels in [0, 1].
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
    x = flat(images, "vae").float()
    with apart(seed):
        encoder, decoder = perceptrons(x.shape[1], latents, hidden)
        excess = nn.Parameter((x.std(0) / 2 + 0.01).log())  # sd = floor + exp(excess)
        networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        networks.register_parameter("excess", excess)

        def program(part: Tensor) -> None:
            pyro.module("vae", networks)
            with pyro.plate("images", len(part)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(part), latents), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(z), floor + excess.exp()).to_event(1), obs=part)

        def guide(part: Tensor) -> None:
            pyro.module("vae", networks)
            with pyro.plate("images", len(part)):
                pyro.sample("z", normal(encoder(part)).to_event(1))

        each, epochs = epochs_of(len(x), batch, epochs, steps)
        loss = TraceMeanField_ELBO().differentiable_loss
        # Pyro's own optimisers keep one Adam a parameter, at several times the cost of a step this small
        adam = torch.optim.Adam(networks.parameters(), lr=lr)

        def fitted() -> VAE:
            sd = (floor + excess.exp()).detach()
            return frozen(VAE(encoder.eval(), decoder.eval(), sd, tuple(images.shape[1:])))

        def of(part: Tensor) -> Tensor:
            return loss(program, guide, x[part]) / len(part)

        training = Training(networks, adam, one_cycle(adam, lr, each * epochs))
        found: VAE = descended(fitted, of, training, len(x), batch, epochs, stage="vae", label="VAE",
                               progress=progress, kept=kept)  # fmt: skip
        return found


def frozen(vae: VAE) -> VAE:
    """The same, which no optimiser changes any more."""
    vae.encoder.requires_grad_(False)
    vae.decoder.requires_grad_(False)
    return vae


def restore(tensors: dict[str, Tensor], input_shape: tuple[int, ...], dtype: torch.dtype) -> VAE:
    """The VAE that `tensors()` came from, in precision `dtype`; raises BadInput where the tensors are no VAE's."""
    try:
        hidden, latents = tensors["decoder.0.weight"].shape
        with torch.device("meta"):  # of sizes that the file only says: nothing is allocated before its tensors fit
            encoder, decoder = perceptrons(math.prod(input_shape), latents, hidden)
        for name, network in (("encoder", encoder), ("decoder", decoder)):
            own = {n.removeprefix(f"{name}."): t for n, t in tensors.items() if n.startswith(f"{name}.")}
            network.load_state_dict(own, assign=True)
        sd = tensors["sd"].reshape(math.prod(input_shape))
    except (KeyError, RuntimeError, ValueError) as error:
        raise BadInput(f"its tensors are not those of a VAE for images {input_shape}") from error
    if not bool((sd > 0).all()):
        raise BadInput("the sd of its pixels are not all positive")
    return frozen(VAE(encoder.to(sd.device, dtype), decoder.to(sd.device, dtype), sd.to(dtype), input_shape))
