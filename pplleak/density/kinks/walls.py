"""Curved walls: the densities on both sides, where a wall stands, and which one an arc meets first.

`inference/billiard.py` moves among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pplleak.density import Density
from pplleak.density.kinks.gates import Gated
from pplleak.density.whitening import Laplace

MAX_BRACKETS = 40  # evaluations in the search for one wall; a trajectory that needs more is rejected, as its reverse is


@dataclass(frozen=True, eq=False)
class Field:
    """U (`exact`) and V (`soft`, its walls held by `gates`) in whitened z = mode + L w.

    idle: the same model with a client that computes no gradient, which gives x. affine: x(w) = offset + slope w, where
    it is that, (pixels,) and (pixels, dim).
    """

    exact: Density
    soft: Density
    idle: Density
    gates: Gated
    laplace: Laplace
    affine: tuple[Tensor, Tensor] | None = None

    def with_images(self) -> Field:
        """Find out whether x is affine in w: a product is then all it takes, instead of a run of the model."""
        plain, dim = replace(self, affine=None), len(self.laplace.mode)
        points = torch.cat([torch.zeros(1, dim), torch.eye(dim)]).to(self.laplace.mode)
        with torch.no_grad():
            x = torch.cat([plain.images(part).flatten(1) for part in points.split(256)])
            offset, slope = x[0], (x[1:] - x[0]).mT
            w = 3 * torch.randn(4, dim, generator=torch.Generator().manual_seed(0)).to(points)
            found = plain.images(w).flatten(1)
        close = torch.allclose(found, offset + w @ slope.mT, rtol=1e-4, atol=1e-4 * float(found.abs().max()))
        return replace(self, affine=(offset, slope) if close else None)

    def whitened(self, laplace: Laplace) -> Field:
        """The same target in other coordinates."""
        return replace(self, laplace=laplace).with_images()

    def images(self, w: Tensor) -> Tensor:
        """x (chains, batch, *input_shape)."""
        shape = self.exact.client.input_shape
        if self.affine is not None:
            offset, slope = self.affine
            return (offset + w @ slope.mT).reshape(len(w), -1, *shape)
        values, _ = self.idle.constrain(self.laplace.decode(w))
        x = self.idle.trace(values, len(w)).nodes["x"]["value"]
        return x.expand(len(w), *x.shape[-1 - len(shape) :])

    def walls(self, w: Tensor) -> Tensor:
        """h (chains, units), zero on the walls."""
        return self.gates.preactivations(self.exact.client.network, self.images(w))

    def normal(self, w: Tensor, unit: Tensor) -> Tensor:
        """∇h_unit (chains, dim), unit (chains,)."""
        w = w.detach().requires_grad_()
        with torch.enable_grad():
            (n,) = torch.autograd.grad(self.walls(w).gather(1, unit[:, None]).sum(), w)
        return n

    def soft_energy(self, w: Tensor, pattern: Tensor, power: float) -> Tensor:
        """V (chains,)."""
        self.gates.hold(pattern)
        with torch.no_grad():
            return -self.soft(self.laplace.decode(w), temperature=power)

    def soft_energy_and_force(self, w: Tensor, pattern: Tensor, power: float) -> tuple[Tensor, Tensor]:
        """V (chains,) and ∇V (chains, dim)."""
        self.gates.hold(pattern)
        value, gradient = self.soft.value_and_grad(self.laplace.decode(w), temperature=power)
        return -value, -gradient @ self.laplace.factor

    def energy(self, w: Tensor, power: float) -> Tensor:
        """U (chains,)."""
        with torch.no_grad():
            return -self.exact(self.laplace.decode(w), temperature=power)


def rounding(h: Tensor) -> Tensor:
    """How exactly h (chains, units) is known: below it a unit stands on its wall, (chains, 1)."""
    return 32 * torch.finfo(h.dtype).eps * h.abs().amax(1, keepdim=True)


def beyond(h: Tensor, pattern: Tensor) -> Tensor:
    """Units (chains, units) that stand on the other side of their wall than the pattern says."""
    return ((h > 0) != pattern) & (h.abs() > rounding(h))


def turned(w: Tensor, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """w cos t + p sin t and p cos t − w sin t, t (chains,): the flow of ½w² + ½p²."""
    cos, sin = t.cos()[:, None], t.sin()[:, None]
    return w * cos + p * sin, p * cos - w * sin


@torch.no_grad()
def next_wall(
    field: Field, w: Tensor, p: Tensor, time: Tensor, pattern: Tensor, h: Tensor, h_end: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The earliest wall on the arcs w cos t + p sin t, 0 < t < time: t, the unit, h there, and where the search failed.

    h and h_end (chains, units) are the walls' at both ends, and at h_end some unit is beyond its wall. Between the two
    h is almost a line: one end of the bracket moves to the earliest crossing of the chords, until a unit is on its wall
    there and none is beyond its own. An end that stays while the other moves twice counts half (the Illinois rule).
    """
    low, high = torch.zeros_like(time), time.clone()
    h_low, h_high, h_found = h.clone(), h_end.clone(), h_end.clone()
    found, unit = time.clone(), torch.zeros_like(time, dtype=torch.long)
    weight, side = torch.ones_like(time), torch.zeros_like(unit)  # of the end that stayed; which one moved last
    todo = torch.arange(len(w), device=w.device)
    for _ in range(MAX_BRACKETS):
        before, after = h_low[todo], h_high[todo]
        # a chain that has just left this wall comes back to it later: look half-way, not at once
        leaving = (before.abs() <= rounding(before)) | (before * after > 0)
        tilt = torch.where(side[todo] < 0, 1 / weight[todo], weight[todo])[:, None]
        share = torch.where(leaving, 0.5, tilt * before / (tilt * before - after))
        share, first = torch.where(beyond(after, pattern[todo]), share, math.inf).min(1)
        t = low[todo] + share * (high[todo] - low[todo])
        here = field.walls(turned(w[todo], p[todo], t)[0])
        over = beyond(here, pattern[todo]).any(1)
        on = here.gather(1, first[:, None])[:, 0].abs() <= rounding(here)[:, 0]
        found[todo], unit[todo], h_found[todo] = t, first, here
        high[todo], low[todo] = torch.where(over, t, high[todo]), torch.where(over, low[todo], t)
        h_high[todo] = torch.where(over[:, None], here, after)
        h_low[todo] = torch.where(over[:, None], before, here)
        moved = torch.where(over, 1, -1)
        weight[todo] = torch.where(side[todo] == moved, 0.5 * weight[todo], 1.0)
        side[todo] = moved
        todo = todo[over | ~on]
        if not len(todo):
            break
    failed = torch.zeros_like(unit, dtype=torch.bool)
    failed[todo] = True
    return found, unit, h_found.scatter(1, unit[:, None], 0.0), failed
