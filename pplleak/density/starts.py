"""Where a search begins: latents whose images are given ones, those that another inference read off the gradient.

    z₀ = argmin over z of ‖x(z) − x₀‖² + ε ‖z‖²

by Gauss-Newton with a matrix, or by L-BFGS where that would be too large. A decoder may be steep in one direction
and flat in another: without the matrix, the flat ones are found only roughly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pplleak import programs
from pplleak.density.density import Density
from pplleak.errors import BadInput
from pplleak.progress import ProgressBar, silent

Decoder = Callable[[Tensor], Tensor]
DENSE = 2048  # latents up to which there is a matrix
STEPS = 300  # of L-BFGS, at most
NEWTON = 30  # of Gauss-Newton, at most
STILL = 1e-12  # squared pixels that a step gains no more than at the end
LEAST = 1e-8  # ε: latents that no pixel tells of stay where they are likeliest
LENGTHS = (1.0, 0.5, 0.2, 0.05, 0.0)  # of a step, tried in one batch


def read_off(density: Density, inference: str, seed: int = 0, progress: ProgressBar = silent) -> Tensor:
    """z (1, dim) of the images that a point inference, a name or a path, finds for the density's observation.

    Raises:
        BadInput: it gives draws, not a point; or it refuses the observation.
    """
    client, observed = density.client, density.observed
    found = programs.load("inference", inference)(density.model, observed, client, seed=seed, progress=progress)
    if found.kind != "point":
        raise BadInput(f"a search begins at one reconstruction, and {inference} gives draws: name quotient, spear, "
                       "tensor, imprint or rgap")  # fmt: skip
    x, y = torch.as_tensor(found.mode), torch.as_tensor(found.y[0, 0])
    if observed.labels is None:  # in the order in which labels that are open are counted
        x = x[y.argsort()]
    return near(density, x.to(client.device, client.dtype))


def near(density: Density, x: Tensor) -> Tensor:
    """z (1, dim) whose images are nearest to x (batch, *input_shape); discrete sites are at their first values."""
    discrete = {n: values[:1] for n, values in density.discrete.items()}
    discrete |= {n: law.sample(torch.Size([1])) for n, law in density.moved.items()}

    def images(z: Tensor) -> Tensor:
        """(chains, pixels of the batch)"""
        values, _ = density.constrain(z)
        given = {n: v.expand(len(z), *v.shape[1:]) for n, v in discrete.items()}
        return density.trace({**values, **given}, len(z)).nodes["x"]["value"].expand(len(z), *x.shape).flatten(1)

    def away(z: Tensor) -> Tensor:
        return (images(z) - x.flatten()).double().square().sum(1) + LEAST * z.double().square().sum(1)

    begun = torch.zeros(1, density.dim, dtype=x.dtype, device=x.device)
    found = _by_newton(images, away, begun, x.flatten()) if density.dim <= DENSE else _by_lbfgs(away, begun)
    if not math.isfinite(float(away(found))):
        raise BadInput("no latents of this model come near the images that the search was to begin at")
    return found


@torch.no_grad()
def _by_newton(images: Decoder, away: Decoder, z: Tensor, x: Tensor) -> Tensor:
    """z (1, dim), by Gauss-Newton steps; slopes by central differences, exact of a linear decoder up to rounding."""
    dim, width = z.shape[1], torch.finfo(z.dtype).eps ** (1 / 3)
    units = width * torch.eye(dim).to(z)
    pull = math.sqrt(LEAST) * torch.eye(dim, dtype=torch.float64, device=z.device)
    lengths = torch.tensor(LENGTHS).to(z)[:, None]
    for _ in range(NEWTON):
        slopes = torch.cat([images(z + e) - images(z - e) for e in units.split(256)]).double() / (2 * width)
        wanted = torch.cat([(x - images(z)[0]).double(), -math.sqrt(LEAST) * z[0].double()])
        step = torch.linalg.lstsq(torch.cat([slopes.mT, pull]), wanted[:, None]).solution[:, 0]
        tries = z + lengths * step.to(z)
        left = away(tries).nan_to_num(math.inf)
        best = int(left.argmin())
        gained, z = float(left[-1] - left[best]), tries[best : best + 1]
        if gained <= STILL:
            break
    return z


def _by_lbfgs(away: Decoder, z: Tensor) -> Tensor:
    begun = z.requires_grad_()
    climb = torch.optim.LBFGS([begun], max_iter=STEPS, history_size=50, tolerance_grad=0.0, tolerance_change=STILL,
                              line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> float:
        climb.zero_grad()
        value = away(begun).sum()
        value.backward()
        return float(value.detach())

    climb.step(closure)
    return begun.detach()
