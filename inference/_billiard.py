"""The kernel of `billiard.py`: kick, drift to the next wall, cross or reflect, accept or reject.

See that file for the equations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pplleak.density import Density
from pplleak.gates import Gated
from pplleak.inference.hmc import DIVERGED, Info
from pplleak.inference.laplace import Laplace

MAX_EVENTS = 100  # walls in one drift; a trajectory that meets more is rejected, as its reverse would be
MAX_BRACKETS = 40  # evaluations in the search for one wall; as above


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

    def normal(self, w: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """∇h_unit (chains, dim), unit (chains,), and h (chains, units)."""
        w = w.detach().requires_grad_()
        with torch.enable_grad():
            h = self.walls(w)
            (n,) = torch.autograd.grad(h.gather(1, unit[:, None]).sum(), w)
        return n, h.detach()

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


@dataclass(frozen=True, eq=False)
class State:
    """Where the chains are: w (chains, dim), U and V (chains,), ∇V (chains, dim), h and pattern (chains, units)."""

    w: Tensor
    energy: Tensor
    soft: Tensor
    force: Tensor
    h: Tensor
    pattern: Tensor


def place(field: Field, w: Tensor, power: float = 1.0) -> State:
    """The state at w, with the pattern read off the position. power: exponent of the likelihood."""
    with torch.no_grad():
        h = field.walls(w)
    return State(w, field.energy(w, power), *field.soft_energy_and_force(w, h > 0, power), h, h > 0)


def rounding(h: Tensor) -> Tensor:
    """How exactly h (chains, units) is known: below it a unit stands on its wall, (chains, 1)."""
    return 32 * torch.finfo(h.dtype).eps * h.abs().amax(1, keepdim=True)


def beyond(h: Tensor, pattern: Tensor) -> Tensor:
    """Units (chains, units) that stand on the other side of their wall than the pattern says."""
    return ((h > 0) != pattern) & (h.abs() > rounding(h))


@torch.no_grad()
def next_wall(
    field: Field, w: Tensor, p: Tensor, time: Tensor, pattern: Tensor, h: Tensor, h_end: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The earliest wall on the rays w + t p, 0 < t < time: t, the unit, and where the search failed, all (chains,).

    h and h_end (chains, units) are the walls' at both ends, and at h_end some unit is beyond its wall. Between the two
    h is almost a line: one end of the bracket moves to the earliest crossing of the chords, until a unit is on its wall
    there and none is beyond its own. An end that stays while the other moves twice counts half (the Illinois rule).
    """
    low, high = torch.zeros_like(time), time.clone()
    h_low, h_high = h.clone(), h_end.clone()
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
        here = field.walls(w[todo] + t[:, None] * p[todo])
        over = beyond(here, pattern[todo]).any(1)
        on = here.gather(1, first[:, None])[:, 0].abs() <= rounding(here)[:, 0]
        found[todo], unit[todo] = t, first
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
    return found, unit, failed


@dataclass(frozen=True, eq=False)
class Drift:
    """Where a drift ended: w, p (chains, dim), h, pattern (chains, units); walls met, and lost (chains,)."""

    w: Tensor
    p: Tensor
    h: Tensor
    pattern: Tensor
    met: Tensor
    lost: Tensor


def drift(
    field: Field, w: Tensor, p: Tensor, h: Tensor, pattern: Tensor, size: float, power: float, jumps: bool = True
) -> Drift:
    """`fly`, and back again: lost where the way back is another one.

    A wall that is crossed twice between two looks at it was not seen, and need not be missed from the other side. The
    way there may only be taken where the way back is its inverse (Zappa, Holmes-Cerfon & Goodman 2018).
    """
    there = fly(field, w, p, h, pattern, size, power, jumps)
    met = there.met > 0
    if not bool(met.any()):
        return there
    back = fly(field, there.w[met], -there.p[met], there.h[met], there.pattern[met], size, power, jumps)
    gap = (back.w - w[met]).abs().amax(1)
    returned = (gap < 100 * math.sqrt(torch.finfo(w.dtype).eps)) & (back.pattern == pattern[met]).all(1)
    lost = there.lost.clone()
    lost[met] |= back.lost | ~returned
    return replace(there, lost=lost)


def fly(
    field: Field, w: Tensor, p: Tensor, h: Tensor, pattern: Tensor, size: float, power: float, jumps: bool
) -> Drift:
    """w + size p, refracted or reflected at every wall on the way.

    jumps=False takes every ΔV for zero: the Metropolis test still keeps the target, but accepts little.
    """
    w, p, h, pattern = w.clone(), p.clone(), h.clone(), pattern.clone()
    left = torch.full_like(w[:, 0], size)
    met = torch.zeros(len(w), dtype=torch.long, device=w.device)
    lost = torch.zeros(len(w), dtype=torch.bool, device=w.device)
    live = torch.arange(len(w), device=w.device)
    for _ in range(MAX_EVENTS):
        end = w[live] + left[live, None] * p[live]
        with torch.no_grad():
            h_end = field.walls(end)
        hit = beyond(h_end, pattern[live]).any(1)
        w[live[~hit]], h[live[~hit]] = end[~hit], h_end[~hit]
        live, h_end = live[hit], h_end[hit]
        if not len(live):
            break
        here = pattern[live]
        t, unit, failed = next_wall(field, w[live], p[live], left[live], here, h[live], h_end)
        met[live], lost[live] = met[live] + 1, lost[live] | failed
        w[live] += t[:, None] * p[live]
        left[live] -= t
        n, h_here = field.normal(w[live], unit)
        h[live] = h_here.scatter(1, unit[:, None], 0.0)
        n = n / n.norm(dim=1, keepdim=True)
        other = here.scatter(1, unit[:, None], ~here.gather(1, unit[:, None]))
        rate = (p[live] * n).sum(1)
        if jumps:
            before, after = field.soft_energy(w[live].repeat(2, 1), torch.cat([here, other]), power).chunk(2)
            spare = rate.square() - 2 * (after - before).to(rate.dtype)
        else:
            spare = rate.square()
        cross = spare > 0
        turned = torch.where(cross, rate.sign() * spare.clamp(min=0).sqrt(), -rate)
        p[live] += (turned - rate)[:, None] * n
        pattern[live] = torch.where(cross[:, None], other, here)
        live = live[~failed]
        if not len(live):
            break
    lost[live] = True
    return Drift(w, p, h, pattern, met, lost)


@dataclass(frozen=True, eq=False)
class Walk:
    """What a trajectory met, each (chains,): walls; and the acceptance that V in the place of U would have given it.

    The latter tells ε from β: a smaller step brings it to one, and leaves to `acceptance` what the gates miss.
    """

    walls: Tensor
    soft_acceptance: Tensor


def step(field: Field, state: State, size: float, steps: int, power: float = 1.0) -> tuple[State, Info, Walk]:
    """One trajectory of every chain and its Metropolis test; returns the state and what happened."""
    start, force, w, h, pattern = torch.randn_like(state.w), state.force, state.w, state.h, state.pattern
    p, soft = start, state.soft
    met = torch.zeros(len(p), dtype=torch.long, device=p.device)
    lost = torch.zeros(len(p), dtype=torch.bool, device=p.device)
    for _ in range(steps):
        now = drift(field, w, p - 0.5 * size * force, h, pattern, size, power)
        w, h, pattern = now.w, now.h, now.pattern
        soft, force = field.soft_energy_and_force(w, pattern, power)
        p, met, lost = now.p - 0.5 * size * force, met + now.met, lost | now.lost
    new = State(w, field.energy(w, power), soft, force, h, pattern)
    kinetic = 0.5 * start.double().square().sum(1)
    gained = 0.5 * p.double().square().sum(1) - kinetic

    def acceptance_of(change: Tensor) -> Tensor:
        change = torch.where(lost, math.inf, torch.nan_to_num(change, nan=math.inf))
        return (-change).clamp(max=0).exp()

    acceptance = acceptance_of(new.energy - state.energy + gained)
    accept = torch.rand_like(acceptance) < acceptance
    kept = State(
        *(
            torch.where(accept.reshape(-1, *(1,) * (a.dim() - 1)), a, b)
            for a, b in zip(vars(new).values(), vars(state).values(), strict=True)
        )
    )
    error = new.soft - state.soft + gained
    info = Info(acceptance, kept.energy + kinetic + torch.where(accept, gained, 0.0), (error > DIVERGED) & ~lost)
    return kept, info, Walk(met, acceptance_of(error))
