"""The same density on the values of its bounded sites themselves, where the classic attacks climb; and L-BFGS-B."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.distributions import IndependentTransform
from torch.distributions.transforms import identity_transform

from pplleak.density import Density, Site
from pplleak.progress import ProgressBar


@dataclass(frozen=True, eq=False)
class Box:
    """low and high (dim,): where z may be; infinite where a site is the whole real line."""

    low: Tensor
    high: Tensor

    def clamp_(self, z: Tensor) -> None:
        """Project z (chains, dim) into the box, in place."""
        z.clamp_(self.low, self.high)


def boxed(density: Density) -> tuple[Density, Box]:
    """log p as a function of the values of all sites that an interval or a half-line bounds, and their box.

    z is then x itself where x is such a site: no transform and no Jacobian, but z has to be kept in the box, outside
    of which the density is 0. The box is that of the transform's own values, which keep off the open ends.
    """
    sites, lows, highs = [], [], []
    for site in density.sites:
        low, high = _ends(site, density)
        if (low.isfinite() | high.isfinite()).any():
            site = replace(site, transform=identity_transform)
        sites.append(site)
        lows.append(low.flatten())
        highs.append(high.flatten())
    return replace(density, sites=tuple(sites)), Box(torch.cat(lows), torch.cat(highs))


def _ends(site: Site, density: Density) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of every entry; infinite where entries are not bounded one by one."""
    transform = site.transform
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    far = torch.full(site.free_shape, math.inf, dtype=density.client.dtype, device=density.client.device)
    if transform.domain.event_dim:  # a simplex, an order, …: no box
        return -far, far
    ends = torch.stack([transform(-far), transform(far)])
    return ends.amin(0), ends.amax(0)


Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


def lbfgsb(evaluate: Evaluate, z: Tensor, box: Box, steps: int, progress: ProgressBar) -> tuple[Tensor, Tensor, bool]:
    """L-BFGS-B (Byrd, Lu, Nocedal and Zhu 1995; scipy's), start by start, each with its own line searches.

    Args:
        evaluate: z (1, dim) -> the value to climb (1,) and its gradient (1, dim). steps: iterations of each start.

    Returns:
        Each start's last iterate, which is its best (starts, dim); the value along the way (iterations, starts), the
        shorter climbs continued at their end; True where Ctrl-C ended it. At least one value is there.
    """
    from scipy.optimize import minimize  # slow to import, and most climbs do without

    bar = iter(progress("MAP", steps * len(z)))
    found, curves = z.detach().clone(), [[evaluate(start[None])[0]] for start in z.detach()]
    bounds = np.stack([box.low.double().cpu().numpy(), box.high.double().cpu().numpy()], 1)

    def at(w: np.ndarray) -> Tensor:
        return torch.as_tensor(w[None], dtype=z.dtype, device=z.device)

    def downhill(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evaluate(at(w))
        slope = -torch.nan_to_num(gradient[0]).double().cpu().numpy()
        return -float(torch.nan_to_num(value, nan=-1e30)), slope

    interrupted = False
    try:
        for k, start in enumerate(z.detach().double().cpu().numpy()):

            def keep(w: np.ndarray, k: int = k) -> None:
                found[k] = at(w)[0]
                curves[k].append(evaluate(found[k : k + 1])[0])
                next(bar, None)

            options = {"maxiter": steps, "maxfun": 25 * steps, "maxcor": 20, "ftol": 0, "gtol": 0}
            minimize(downhill, start, jac=True, method="L-BFGS-B", bounds=bounds, callback=keep, options=options)
    except KeyboardInterrupt:
        interrupted = True
    longest = max(map(len, curves))
    curve = torch.stack([torch.cat([*c, *c[-1:] * (longest - len(c))]) for c in curves], 1)
    return found, curve, interrupted
