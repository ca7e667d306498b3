"""Where a search begins: latents whose images are given ones, those that another inference read off the gradient.

z₀ = argmin over z of ‖x(z) − x₀‖² + ε ‖z‖²                              by L-BFGS, whatever the prior's decoder is
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplleak import programs
from pplleak.density.density import Density
from pplleak.errors import BadInput
from pplleak.progress import ProgressBar, silent

STEPS = 200  # of L-BFGS, at most
STILL = 1e-12  # squared pixels that a step gains no more than at the end
LEAST = 1e-8  # ε: latents that no pixel tells of stay where they are likeliest


def read_off(density: Density, inference: str, seed: int = 0, progress: ProgressBar = silent) -> Tensor:
    """z (1, dim) of the images that a point inference, a name or a path, finds for the density's observation.

    Raises:
        BadInput: it gives draws, not a point; or it refuses the observation.
    """
    client, observed = density.client, density.observed
    found = programs.load("inference", inference)(density.model, observed, client, seed=seed, progress=progress)
    if found.kind != "point":
        raise BadInput(f"a search begins at one reconstruction, and {inference} gives draws: name quotient, spear, "
                       "imprint or rgap")  # fmt: skip
    x, y = torch.as_tensor(found.mode), torch.as_tensor(found.y[0, 0])
    if observed.labels is None:  # in the order in which labels that are open are counted
        x = x[y.argsort()]
    return near(density, x.to(client.device, client.dtype))


def near(density: Density, x: Tensor) -> Tensor:
    """z (1, dim) whose images are nearest to x (batch, *input_shape); discrete sites are at their first values."""
    z = torch.zeros(1, density.dim, dtype=x.dtype, device=x.device)
    discrete = {n: values[:1] for n, values in density.discrete.items()}
    discrete |= {n: law.sample(torch.Size([1])) for n, law in density.moved.items()}

    def away(z: Tensor) -> Tensor:
        values, _ = density.constrain(z)
        made = density.trace({**values, **discrete}, 1).nodes["x"]["value"]
        return (made - x).double().square().sum() + LEAST * z.double().square().sum()

    begun = z.requires_grad_()
    climb = torch.optim.LBFGS([begun], max_iter=STEPS, history_size=50, tolerance_grad=0.0, tolerance_change=STILL,
                              line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> float:
        climb.zero_grad()
        value = away(begun)
        value.backward()
        return float(value.detach())

    climb.step(closure)
    if not math.isfinite(float(away(begun.detach()))):
        raise BadInput("no latents of this model come near the images that the search was to begin at")
    return begun.detach()
