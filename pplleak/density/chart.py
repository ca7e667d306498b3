"""Images as coordinates: the map from z to x of models whose x is an invertible image of its latents.

Where x = mean + F z with F invertible, or x is the logistic function of that (a model on the pixel box), z = z(x) and

    log p(g | x) + log p(x) = log p(z(x) | g) − log |dx/dz| + constant

so every image has a density, and what another attack found can be ranked or climbed on from. Where x has more latents
than pixels (a VAE), or bends them in another way, p(x) has no such form, and the model is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pplleak.density import Density, require_told
from pplleak.errors import BadInput

BENT = 1e-3  # pixel units by which x may differ from its affine form: float32's rounding stays far below


@dataclass(frozen=True, eq=False)
class Chart:
    """Images x (…, n) as coordinates z (…, n) and back, in float64: x = mean + factor z, or its logistic function.

    mean (n,), factor (n, n), inverse: of factor; boxed: True for the logistic function.
    """

    mean: Tensor
    factor: Tensor
    inverse: Tensor
    boxed: bool

    def image(self, z: Tensor) -> Tensor:
        a = self.mean + z.double() @ self.factor.mT
        return a.sigmoid() if self.boxed else a

    def latents(self, x: Tensor) -> Tensor:
        """z of x; a boxed x is folded back into [0, 1] first."""
        if self.boxed:
            x = x.remainder(2)
            x = torch.where(x > 1, 2 - x, x).logit(eps=1e-12)
        return (x - self.mean) @ self.inverse.mT

    def log_det(self, z: Tensor) -> Tensor:
        """log |dx/dz| + constant, (…,)."""
        if not self.boxed:
            return torch.zeros(z.shape[:-1], dtype=torch.float64, device=z.device)
        a = self.mean + z.double() @ self.factor.mT
        return (logsigmoid(a) + logsigmoid(-a)).sum(-1)


@torch.no_grad()
def chart(density: Density) -> Chart:
    """Read the model's map from z to x off its images at zero and at the unit vectors, and check it at other z.

    Raises:
        BadInput: x is not an invertible affine image of the latents, nor the logistic function of one.
    """
    require_told(density, "ball")
    n = density.observed.batch_size * math.prod(density.client.input_shape)
    if density.dim != n:
        raise BadInput(f"inference ball needs a model whose x is an invertible image of its latents: this one has "
                       f"{density.dim} latents for {n} pixels; take map, or decide from posterior samples (pplleak "
                       "risk)")  # fmt: skip
    kind: dict[str, Any] = {"dtype": density.client.dtype, "device": density.client.device}
    with torch.random.fork_rng(devices=[]):
        probes = torch.cat([torch.zeros(1, n, **kind), torch.eye(n, **kind), torch.randn(4, n, **kind)])
        x = torch.cat([density.images(part)[0].flatten(1) for part in probes.split(256)]).double()
    for boxed in (False, True):
        a = x.logit() if boxed else x
        factor = (a[1 : n + 1] - a[0]).mT
        if not factor.isfinite().all():
            continue
        widths = torch.linalg.svdvals(factor)
        if widths[-1] < 1e-5 * widths[0]:
            continue
        found = Chart(a[0], factor, torch.linalg.inv(factor), boxed)
        if (found.image(probes[n + 1 :]) - x[n + 1 :]).abs().max() < BENT:
            return found
    raise BadInput("inference ball needs a model whose x is an invertible affine image of its latents, or the logistic "
                   "function of one: this model's is neither; take map, or decide from posterior samples (pplleak "
                   "risk)")  # fmt: skip
