"""A diffusion model on top of a Gaussian: a small denoiser bends the Gaussian's draws into images, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pplleak import memory
from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._denoiser import Denoiser, as_image
from pplleak.priors._fitting import Kept, Training, apart, descended, epochs_of, flat, one_cycle
from pplleak.priors._invertible import inverse, log_det
from pplleak.priors._store import trained
from pplleak.priors.gaussian import (
    FittedGaussian,
    fit_gaussian,
    restore_gaussian,
    standard_normal,
    standard_normal_log_prob,
)
from pplleak.progress import ProgressBar, silent

SCALE = 0.3  # of images without their mean, as the network sees them
MOST_LEVELS = 200
PART = 100  # images whose density is sought at a time


@dataclass(frozen=True, eq=False)
class Diffusion:
    """x = mean + Q √(λ + floor²) u_K,   u_0 = z ~ Normal(0, I),   u_{k+1} = u_k + (θ_{k+1} − θ_k) ∘ v(u_k, s_k)

    The probability flow of a diffusion (Song et al. 2021, eq. 13) from noise of sd σ_0 down to σ_K = floor, in the
    coordinates in which that of a Gaussian stands still: of the images' covariance Q diag(λ) Qᵀ,

        u = Qᵀ(x_σ − mean) / √(λ + σ²),   du/dθ = v(u, σ) = E[cos θ ε − sin θ a | u],   θ = arctan(σ / √λ)

    an image x_σ = x + σ Q ε whose whitened coordinates are a = Qᵀ(x − mean) / √λ, and v the velocity of Salimans & Ho
    (2022, section 4). Each principal component has a schedule of its own, as it has a variance of its own. K Euler
    steps, each at the noise level s_k = √(σ_k σ_{k+1}) between its ends, are DDIM's (Song, Meng & Ermon 2021, eq. 12)
    but for what a Gaussian would do, which is done exactly: with v = 0 this is the prior `gaussian`, whatever K.

    The density is that of x as it is drawn, and not of the flow that K steps approximate: by the change of variables,
    step by step. An attack moves z, and needs no inverse; `log_prob` does. Long steps may fold: then there are images
    that no z is drawn as, whose density is 0, and others that more than one is, of which it counts the one it finds.

    base    the Gaussian; its factor is Q √(λ + floor²)
    network (seen, band, t) -> v, both rotated back into images (`_denoiser.Denoiser`)
    sigmas  (K + 1,), falling: the noise levels
    """

    base: FittedGaussian
    network: Denoiser
    sigmas: Tensor

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.base.input_shape

    @cached_property
    def spread(self) -> Tensor:
        """√λ, (pixels,): standard deviations of the images along their principal components, without the noise."""
        return spread_of(self.base, self.sigmas[-1])

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z and x; x (*chains, batch_size, *input_shape)."""
        z = pyro.sample("z", self.coordinates(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z))
        return x

    def coordinates(self, batch_size: int = 1) -> TorchDistribution:
        """z ~ Normal(0, I), event shape (batch_size, pixels)."""
        return standard_normal(self.base.mean, batch_size, self.base.rank)

    def step(self, k: int, u: Tensor) -> Tensor:
        """u_k (N, pixels) -> u_{k+1}."""
        first, last = self.sigmas[k], self.sigmas[k + 1]
        turn = torch.atan2(last, self.spread) - torch.atan2(first, self.spread)
        return u + turn * velocity(self, u, (first * last).sqrt().expand(len(u)))

    def decode(self, z: Tensor) -> Tensor:
        """z (*chains, batch, pixels) -> x (*chains, batch, *input_shape)."""
        u = z.to(self.base.mean.dtype).flatten(0, -2)
        for k in range(len(self.sigmas) - 1):
            u = self.step(k, u)
        return self.base.decode(u).unflatten(0, z.shape[:-1])

    def encode(self, x: Tensor) -> Tensor:
        """x (N, *input_shape) -> z (N, pixels), the inverse of `decode`; NaN where it was not found."""
        u = self.base.encode(x).to(self.base.mean.dtype)
        for k in reversed(range(len(self.sigmas) - 1)):
            u = inverse(lambda v, k=k: self.step(k, v), u)  # type: ignore[misc]
        return u

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), by torch's generator."""
        with torch.no_grad():
            return self.decode(self.coordinates(count).sample())

    @torch.no_grad()
    def log_prob(self, x: Tensor, exact: bool | None = None) -> Tensor:
        """log p(x) for x (N, *input_shape); (N,), float64; −∞ where no z was found that is drawn as x.

            log Normal(z; 0, I) − Σ_k log |det ∂u_{k+1}/∂u_k| − log |det Q √(λ + floor²)|

        Args:
            exact: the determinants, by their matrices; else estimates by stochastic Lanczos quadrature
                (`_invertible.log_det`), whose error is drawn anew for every image and averages out over many. None:
                exact for small images.
        """
        return torch.cat([self._log_prob(part, exact) for part in x.split(PART)])

    def _log_prob(self, x: Tensor, exact: bool | None) -> Tensor:
        u = self.base.encode(x).to(self.base.mean.dtype)
        total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        for k in reversed(range(len(self.sigmas) - 1)):

            def step(v: Tensor, k: int = k) -> Tensor:
                return self.step(k, v)

            u = inverse(step, u)
            total = total + log_det(step, u, exact)
        found = standard_normal_log_prob(u.double()) - total - self.base.log_det
        return found.nan_to_num(nan=-math.inf, neginf=-math.inf)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it."""
        base = {f"base.{n}": t for n, t in self.base.tensors().items()}
        return base | {f"network.{n}": t for n, t in self.network.state_dict().items()} | {"sigmas": self.sigmas}


def spread_of(base: FittedGaussian, floor: Tensor) -> Tensor:
    """√λ of a Gaussian whose variances are λ + floor²."""
    return (base.widths.double().square() - floor.double().square()).clamp(min=0).sqrt().to(base.widths.dtype)


def velocity(prior: Diffusion, u: Tensor, sigma: Tensor) -> Tensor:
    """v(u, σ) for u (N, pixels) and σ (N,).

    The network sees what a Gaussian's posterior mean makes of x_σ, and the components that σ is just hiding, at unit
    scale: sin 2θ ∘ u.
    """
    root, widths, spread = prior.base.root, prior.base.widths, prior.spread
    sigma = sigma[:, None]
    total = spread.square() + sigma.square()
    shape = as_image(prior.input_shape)
    seen = root(spread.square() / (total.sqrt() * widths * SCALE) * u).unflatten(-1, shape)
    band = root(2 * spread * sigma / (total * widths) * u).unflatten(-1, shape)
    least, most = prior.sigmas[-1].log(), prior.sigmas[0].log()
    t = (sigma[:, 0].log() - least) / (most - least)
    return root.inverse(prior.network(seen, band, t).flatten(1)) * widths


def prior(like: Like, *, reference: str | Tensor = "digits", file: str = "", levels: int = 0) -> Diffusion:
    """The fitted diffusion of a file, or one that is fitted to public images, once, and kept.

    Args:
        reference: the public images that it is fitted to where no file is named: a name or a folder of `pplleak.data`,
            or a tensor of them.
        file: a diffusion of `pplleak prior fit diffusion`, by name or path.
        levels: K, the steps from noise to image; 0: as many as it was fitted with. The network knows any.
    """
    if levels:
        require_levels(levels)  # before a fit of minutes
    fitted: Diffusion = trained("diffusion", file, reference, tuple(like.input_shape), like.dtype, like.device)
    return of_levels(fitted, levels) if levels else fitted


def require_levels(levels: int) -> None:
    if not 1 <= levels <= MOST_LEVELS:
        raise BadInput(f"a diffusion prior has 1 to {MOST_LEVELS} levels, not {levels}")


@lru_cache(maxsize=8)  # models call `prior` at every trace
def of_levels(prior: Diffusion, levels: int) -> Diffusion:
    """The same denoiser in so many steps, which is another density."""
    require_levels(levels)
    return replace(
        prior, sigmas=levels_between(float(prior.sigmas[0]), float(prior.sigmas[-1]), levels).to(prior.sigmas)
    )


def levels_between(most: float, floor: float, levels: int) -> Tensor:
    """Noise levels σ_0 = most … σ_K = floor, (levels + 1,), float64, by equal factors."""
    return torch.linspace(math.log(most), math.log(floor), levels + 1, dtype=torch.float64).exp()


def fit(
    images: Tensor,
    *,
    levels: int = 12,
    hidden: int = 16,
    floor: float = 0.02,
    epochs: int = 400,
    steps: int = 2500,
    batch: int = 64,
    lr: float = 3e-3,
    decay: float = 1e-3,
    seed: int = 0,
    progress: ProgressBar = silent,
    kept: Kept | None = None,
) -> Diffusion:
    """The Gaussian in closed form, then the denoiser by the likelihood's weights of its errors:

        minimise   E over x, ε, log σ of Σ_i cos² θ_i (cos θ_i ε_i − sin θ_i a_i − v_i(u, σ))²

    With these weights the integral over log σ is what bounds −log p(x) from above (Kingma et al. 2021, eq. 17), and by
    how much the sum falls below its value at v = 0 is how far this is ahead of the Gaussian. log σ is uniform from
    floor to the largest standard deviation of the images, stratified over a batch (AdamW, one-cycle rate).

    Args:
        images: (N, *input_shape), pixels in [0, 1].
        levels: K, the steps from noise to image: what a draw, and each step of an attack, takes. More of them do
            not see more of an image, but fewer images are left without an inverse, and so without a density.
        hidden: channels of the denoiser at half the images' resolution; twice as many at a quarter.
        floor: standard deviation of the noise that the images are seen through, in pixel units.
        epochs: passes over the images,
        steps: or so many optimisation steps, whichever ends first.
        batch: images a step.
        lr: the highest learning rate.
        decay: AdamW's weight decay.
        kept: where the state is kept, to go on from (`pplleak.priors._fitting`).

    Raises:
        BadInput: inputs of more than three dimensions, or more levels than there may be.
        Interrupted: Ctrl-C, with the denoiser as it is; a plain KeyboardInterrupt before the first epoch's end.
    """
    require_positive(hidden=hidden, floor=floor, epochs=epochs, steps=steps, batch=batch, lr=lr)
    require_levels(levels)
    if images.dim() > 4:
        raise BadInput(f"a diffusion prior takes images (channels, rows, columns), not {tuple(images.shape[1:])}")
    x = flat(images, "diffusion").float()
    with apart(seed):
        base = fit_gaussian(images, floor=floor, dtype=torch.float32)
        most = max(float(spread_of(base, torch.tensor(floor)).max()), 2 * floor)
        sigmas = levels_between(most, floor, levels).float()
        made = Diffusion(base, Denoiser(as_image(base.input_shape)[0], hidden), sigmas)
        variance = made.spread.square()

        def loss(part: Tensor) -> Tensor:
            """Mean over components of the weighted squared error."""
            count = len(part)
            at = (torch.rand(()) + torch.arange(count) / count) % 1
            sigma = (floor * (most / floor) ** at)[:, None]
            image, noise = base.root.inverse(x[part] - base.mean) * base.widths, torch.randn(count, x.shape[1])
            total = variance + sigma.square()
            v = velocity(made, (image + sigma * noise) / total.sqrt(), sigma[:, 0])
            return ((variance * noise - sigma * image) / total - (variance / total).sqrt() * v).square().mean()

        def fitted() -> Diffusion:
            made.network.requires_grad_(False)
            return made

        each, epochs = epochs_of(len(x), batch, epochs, steps)
        adam = torch.optim.AdamW(made.network.parameters(), lr=lr, weight_decay=decay, betas=(0.9, 0.99))
        training = Training(made.network, adam, one_cycle(adam, lr, each * epochs))
        found: Diffusion = descended(fitted, loss, training, len(x), batch, epochs, stage="diffusion",
                                     label="diffusion", clip=0.1, progress=progress, kept=kept)  # fmt: skip
        return found


def restore(tensors: dict[str, Tensor], input_shape: tuple[int, ...], dtype: torch.dtype) -> Diffusion:
    """The prior that `tensors()` came from, in precision `dtype`; raises BadInput where they are no diffusion's."""
    base = restore_gaussian(tensors, input_shape, dtype, prefix="base.")
    own = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
    try:
        sigmas, hidden = tensors["sigmas"], len(own["enter.weight"])
        size = torch.finfo(dtype).bits // 8 * sum(t.numel() for t in own.values())
        memory.require(size, "the denoiser of a diffusion prior", "fit one of fewer channels")
        with torch.device("meta"):  # of sizes that the file only says: nothing is allocated before its tensors fit
            network = Denoiser(as_image(input_shape)[0], hidden)
        network.load_state_dict(own, assign=True)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"its tensors are not those of a diffusion of images {input_shape}") from error
    if sigmas.dim() != 1 or not 2 <= len(sigmas) <= MOST_LEVELS + 1:
        raise BadInput(f"it has no noise levels, or more than {MOST_LEVELS}")
    if not bool((sigmas > 0).all() and (sigmas.diff() < 0).all() and sigmas.isfinite().all()):
        raise BadInput("its noise levels do not fall")
    return Diffusion(base, network.to(sigmas.device, dtype).requires_grad_(False), sigmas.to(dtype))
