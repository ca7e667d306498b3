"""The same density on the values of its bounded sites themselves, where the classic attacks climb and clamp."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import IndependentTransform
from torch.distributions.transforms import identity_transform

from pplleak.density import Density, Site


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
