"""A normalising flow: on principal components (images as curved as the data, with an exact density), or on the latents
of a VAE (whose own standard normal does not know which latents are those of images)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pplleak.errors import BadInput, require_positive, unknown
from pplleak.priors._contract import Like
from pplleak.priors._fitting import Interrupted, Kept, Training, apart, descended, epochs_of, flat, one_cycle
from pplleak.priors._splines import Flow, coupling_spline, restored_spline
from pplleak.priors._store import trained
from pplleak.priors.gaussian import FittedGaussian, fit_gaussian, restore_gaussian, standard_normal_log_prob
from pplleak.priors.mixture import rest
from pplleak.priors.vae import VAE, log_importance
from pplleak.priors.vae import fit as fit_vae
from pplleak.priors.vae import restore as restore_vae
from pplleak.progress import ProgressBar, silent

if TYPE_CHECKING:
    import zuko

Coordinates = Literal["pca", "vae"]


@dataclass(frozen=True, eq=False)
class FlowPrior:
    """x = mean + factor (w, z),   z ~ flow,   w ~ Normal(0, I)

    base  the Gaussian whose principal components are the coordinates: (w, z) in order of growing variance
    flow  a neural spline flow with coupling layers (Durkan et al. 2019) over the `rank` leading coefficients z
    """

    base: FittedGaussian
    flow: zuko.flows.Flow
    rank: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.base.input_shape

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z, w and x; x (*chains, batch_size, *input_shape)."""
        z = pyro.sample("z", self.leading(batch_size))
        w = pyro.sample("w", self.rest(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z, w))
        return x

    def leading(self, batch_size: int = 1) -> TorchDistribution:
        """z ~ flow, event shape (batch_size, rank)."""
        return Flow(self.flow()).expand(torch.Size([batch_size])).to_event(1)

    def rest(self, batch_size: int = 1) -> TorchDistribution:
        """w ~ Normal(0, I), event shape (batch_size, pixels − rank)."""
        return rest(self.base, self.rank, batch_size)

    def decode(self, z: Tensor, w: Tensor) -> Tensor:
        """z (*chains, batch, rank), w (*chains, batch, pixels − rank) -> x (*chains, batch, *input_shape)."""
        return self.base.decode(torch.cat([w.to(z.dtype), z], -1))

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        with torch.no_grad():
            return self.decode(self.leading(count).sample(), self.rest(count).sample())

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) for x (N, *input_shape); (N,), float64."""
        coefficients = self.base.encode(x)
        w, z = coefficients[:, : -self.rank], coefficients[:, -self.rank :]
        head = self.flow().log_prob(z.to(self.base.mean.dtype)).double()
        return head + standard_normal_log_prob(w) - self.base.log_det

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it; numbers of the flow that are not fitted (masks, orders) follow from its sizes."""
        base = {f"base.{n}": t for n, t in self.base.tensors().items()}
        return base | {f"flow.{n}": t for n, t in self.flow.named_parameters()}


@dataclass(frozen=True, eq=False)
class FlowOnVAE:
    """x = decoder(z) + sd ∘ w,   z ~ flow,   w ~ Normal(0, I)

    The flow is fitted to the latents of images, the mixture of q(z | x) over them: draws come from where images are,
    which those of a standard normal need not.

    vae   the decoder, its sd, and the encoder that found the latents
    flow  a neural spline flow with coupling layers (Durkan et al. 2019) over the VAE's latents
    """

    vae: VAE
    flow: zuko.flows.Flow
    bound: ClassVar[bool] = True  # log_prob lies below the log-density

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.vae.input_shape

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z, w and x; x (*chains, batch_size, *input_shape)."""
        z = pyro.sample("z", self.leading(batch_size))
        w = pyro.sample("w", self.rest(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z, w))
        return x

    def leading(self, batch_size: int = 1) -> TorchDistribution:
        """z ~ flow, event shape (batch_size, latents)."""
        return Flow(self.flow()).expand(torch.Size([batch_size])).to_event(1)

    def rest(self, batch_size: int = 1) -> TorchDistribution:
        """w ~ Normal(0, I), event shape (batch_size, pixels)."""
        return self.vae.noise(batch_size)

    def decode(self, z: Tensor, w: Tensor) -> Tensor:
        """z (*chains, batch, latents), w (*chains, batch, pixels) -> x (*chains, batch, *input_shape)."""
        return self.vae.decode(z, w)

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        with torch.no_grad():
            return self.decode(self.leading(count).sample(), self.rest(count).sample())

    @torch.no_grad()
    def log_prob(self, x: Tensor, particles: int = 200) -> Tensor:
        """A bound from below on log p(x), as `VAE.log_prob`, with the flow for p(z); (N,), float64."""
        return log_importance(self.vae, x, lambda z: self.flow().log_prob(z).double(), particles)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it."""
        vae = {f"vae.{n}": t for n, t in self.vae.tensors().items()}
        return vae | {f"flow.{n}": t for n, t in self.flow.named_parameters()}


def prior(like: Like, *, reference: str | Tensor = "digits", file: str = "") -> FlowPrior | FlowOnVAE:
    """The fitted flow of a file, or one that is fitted to public images, once, and kept.

    Args:
        reference: the public images that it is fitted to where no file is named: a name or a folder of `pplleak.data`,
            or a tensor of them.
        file: a flow of `pplleak prior fit flow`, by name or path.
    """
    fitted: FlowPrior | FlowOnVAE = trained("flow", file, reference, tuple(like.input_shape), like.dtype, like.device)
    return fitted


def fit(
    images: Tensor,
    *,
    on: Coordinates = "pca",
    rank: int = 16,
    hidden: int = 64,
    floor: float = 0.02,
    epochs: int = 60,
    steps: int = 3000,
    batch: int = 128,
    lr: float = 2e-3,
    decay: float = 1e-2,
    seed: int = 0,
    progress: ProgressBar = silent,
    kept: Kept | None = None,
) -> FlowPrior | FlowOnVAE:
    """Coordinates first (principal components in closed form, or a VAE with its default settings), then the flow.

    The flow is fitted by maximum likelihood (AdamW, one-cycle rate).

    Args:
        images: (N, *input_shape), pixels in [0, 1].
        on: what the flow describes: the leading principal components (pca) or the latents of a VAE (vae).
        rank: principal components or latents that the flow describes; what is left stays Gaussian.
        hidden: width of the flow's networks.
        floor: standard deviation of the noise that the images are seen through, in pixel units; the VAE's least sd.
        epochs: passes of the flow over the images,
        steps: or so many optimisation steps, whichever ends first.
        batch: images a step.
        lr: the highest learning rate.
        decay: AdamW's weight decay.
        kept: where the state is kept, to go on from (`pplleak.priors._fitting`).

    Raises:
        Interrupted: Ctrl-C, with the flow as it is; a plain KeyboardInterrupt before the flow's first epoch's end.
    """
    require_positive(rank=rank, hidden=hidden, floor=floor, epochs=epochs, steps=steps, batch=batch, lr=lr)
    if on not in get_args(Coordinates):
        raise unknown("coordinates", on, get_args(Coordinates))
    flat(images, "flow")
    if on == "vae":
        if rank < 2:
            raise BadInput("a flow needs at least 2 latents")
        try:
            vae = fit_vae(images, latents=rank, floor=floor, seed=seed, progress=progress, kept=kept)
        except Interrupted as stop:  # half a VAE is no flow: it is kept in its state, or not at all
            raise KeyboardInterrupt from stop
        with torch.no_grad():
            code = vae.encoder(images.flatten(1).to(vae.sd))
        z, noise = code[:, :rank], code[:, rank:].clamp(-10, 4).exp()
    else:
        base = fit_gaussian(images, floor=floor, dtype=torch.float32)
        rank = min(rank, base.rank - 1)
        if rank < 2:
            raise BadInput("a flow prior needs images of at least 3 pixels")
        z = base.encode(images)[:, -rank:].float()
        noise = (floor / base.widths[-rank:]).expand_as(z)

    def made() -> FlowPrior | FlowOnVAE:
        flow.requires_grad_(False)
        return FlowOnVAE(vae, flow) if on == "vae" else FlowPrior(base, flow, rank)

    with apart(seed):
        flow = coupling_spline(rank, hidden=hidden, activation=nn.SiLU, dtype=torch.float32)
        each, epochs = epochs_of(len(z), batch, epochs, steps)
        adam = torch.optim.AdamW(flow.parameters(), lr=lr, weight_decay=decay)
        training = Training(flow, adam, one_cycle(adam, lr, each * epochs))

        def loss(part: Tensor) -> Tensor:
            seen = z[part] + noise[part] * torch.randn(len(part), rank)
            return -flow().log_prob(seen).mean()

        found: FlowPrior | FlowOnVAE = descended(made, loss, training, len(z), batch, epochs, stage="flow",
                                                 label="flow", clip=10.0, progress=progress, kept=kept)  # fmt: skip
        return found


def restore(tensors: dict[str, Tensor], input_shape: tuple[int, ...], dtype: torch.dtype) -> FlowPrior | FlowOnVAE:
    """The prior that `tensors()` came from, in precision `dtype`; raises BadInput where they are no flow's."""
    own = {n.removeprefix("flow."): t for n, t in tensors.items() if n.startswith("flow.")}
    flow, rank = restored_spline(own, dtype)
    of_vae = {n.removeprefix("vae."): t for n, t in tensors.items() if n.startswith("vae.")}
    if of_vae:
        vae = restore_vae(of_vae, input_shape, dtype)
        if vae.latents != rank:
            raise BadInput(f"its flow describes {rank} latents, its VAE has {vae.latents}")
        return FlowOnVAE(vae, flow)
    base = restore_gaussian(tensors, input_shape, dtype, prefix="base.")
    if rank >= math.prod(input_shape):
        raise BadInput("the tensors of its flow are not those of a spline flow")
    return FlowPrior(base, flow, rank)
