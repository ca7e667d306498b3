"""Curved walls: the densities on both sides, where a wall stands, and which one an arc meets first.

`inference/billiard.py` moves among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pplleak.density import Density
from pplleak.density.kinks.gates import Gated
from pplleak.density.kinks.head import Head
from pplleak.density.kinks.perceptron import flipped
from pplleak.density.kinks.recordings import Recordings
from pplleak.density.whitening import Laplace

STUCK = 0.3  # weight of an end that stayed while the other moved three times
MAX_BRACKETS = 40  # evaluations in the search for one wall; a trajectory that needs more is rejected, as its reverse is


@dataclass(frozen=True, eq=False)
class LateJumps:
    """ΔV from the layers behind the first wall alone: scale times theirs, and the rest (walls,) of that unit with the
    sign of the switch. late: V of these layers, or they in closed form."""

    late: Density | Head
    scale: float
    rest: Tensor


@dataclass(frozen=True, eq=False)
class Field:
    """U (`exact`) and V (`soft`, its walls held by `gates`) in whitened z = mode + L w.

    idle: the same model with a client that computes no gradient, which gives x. affine: x(w) = offset + slope w, where
    it is that, (pixels,) and (pixels, dim). late: V of the layers from the first wall on, and what the jumps at every
    wall (units,) leave out, on average; None: ΔV is taken from all layers.
    """

    exact: Density
    soft: Density
    idle: Density
    gates: Gated
    laplace: Laplace
    affine: tuple[Tensor, Tensor] | None = None
    late: LateJumps | None = None

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
        return replace(self, laplace=laplace, late=None).with_images()

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
        return self._walls(w)[0]

    def meet(
        self, w: Tensor, pattern: Tensor, unit: Tensor, power: float, jumps: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """∇h_unit (chains, dim) at walls, unit (chains,), and ΔV (chains,) of switching there, if asked for."""
        n, *features = self._normals(w, unit)
        return n, self.jump(w, pattern, unit, power, *features) if jumps else None

    def soft_energy(self, w: Tensor, pattern: Tensor, power: float, of: Density | None = None) -> Tensor:
        """V (chains,); of: another density in the place of `soft`, with the same network."""
        if of is None:
            return self._energies(w, pattern, power=power)[0]
        self.gates.hold(pattern)
        with torch.no_grad():
            return -of(self.laplace.decode(w), temperature=power)

    def jump(self, w: Tensor, pattern: Tensor, unit: Tensor, power: float, features: Tensor | None = None) -> Tensor:
        """ΔV (chains,) of `unit` switching on its wall; features: what goes into the layers from the first wall on, if
        that is known.

        A switch changes the gradient δ of its own layer and of those before it. The layers before the first wall have
        little of it and cost the most: where `late` is known, their share is guessed from the others'. Any ΔV keeps the
        dynamics reversible that changes its sign with the direction of the switch, and the Metropolis test asks for U.
        """
        cheap = self.late
        late = None if cheap is None else cheap.late
        if isinstance(late, Head):
            if features is None:
                with torch.no_grad():
                    features = self.gates.with_features(self.images(w))[1]
            gap = power * late.jump(features[:, 0].detach(), pattern, unit)
        else:
            both = torch.cat([pattern, flipped(pattern, unit)])
            before, after = self.soft_energy(w.repeat(2, 1), both, power, late).chunk(2)
            gap = after - before
        if cheap is None:
            return gap
        sign = 1 - 2 * pattern.gather(1, unit[:, None])[:, 0].to(cheap.rest.dtype)
        return cheap.scale * gap + power * sign * cheap.rest[unit]

    def soft_energy_and_force(self, w: Tensor, pattern: Tensor, power: float) -> tuple[Tensor, Tensor]:
        """V (chains,) and ∇V (chains, dim)."""
        value, slope = self._forces(w, pattern, power=power)
        return value, slope

    @cached_property
    def _walls(self) -> Recordings:
        return Recordings(lambda w: (self.gates.preactivations(self.images(w)),))

    @cached_property
    def _normals(self) -> Recordings:
        closed = self.late is not None and isinstance(self.late.late, Head)  # which asks for the features, too

        def plain(w: Tensor, unit: Tensor) -> tuple[Tensor, ...]:
            w = w.detach().requires_grad_()
            with torch.enable_grad():
                x = self.images(w)
                h, *features = self.gates.with_features(x) if closed else (self.gates.preactivations(x),)
                (n,) = torch.autograd.grad(h.gather(1, unit[:, None]).sum(), w)
            return n, *(f.detach() for f in features)

        return Recordings(plain)

    @cached_property
    def _energies(self) -> Recordings:
        def plain(w: Tensor, pattern: Tensor, power: Tensor) -> tuple[Tensor, ...]:
            self.gates.hold(pattern)
            return (-self.soft(self.laplace.decode(w), temperature=power),)

        return Recordings(plain)

    @cached_property
    def _forces(self) -> Recordings:
        def plain(w: Tensor, pattern: Tensor, power: Tensor) -> tuple[Tensor, ...]:
            self.gates.hold(pattern)
            value, gradient = self.soft.value_and_grad(self.laplace.decode(w), temperature=power)
            return -value, -gradient @ self.laplace.factor

        return Recordings(plain)

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


@dataclass(eq=False)
class Brackets:
    """Searches for the next wall on the arcs w cos t + p sin t, 0 < t < time; a row each, which `at` picks out.

    h (rows, units) is known at both ends, and at the far one some unit is beyond its wall. One end of the bracket moves
    to the earliest crossing that is guessed, until a unit is on its wall there and none is beyond its own. Guesses are
    chords first, then parabolas through both ends and the end that moved last (inverse quadratic interpolation, Brent
    1973): between two walls h is almost a line, and three looks are enough. An end that stays while the other moves
    again and again counts half each time (the Illinois rule).

    low, high, gone: the ends and the end that moved last (rows,). weight of the end that stayed, side: which one moved
    last. t, unit: the guess.
    """

    low: Tensor
    high: Tensor
    gone: Tensor
    weight: Tensor
    side: Tensor
    t: Tensor
    unit: Tensor
    looks: Tensor
    h_low: Tensor
    h_high: Tensor
    h_gone: Tensor

    @staticmethod
    def empty(h: Tensor) -> Brackets:
        """As many as h (rows, units) has rows, none of them open."""
        none, count = torch.zeros_like(h[:, 0]), torch.zeros(len(h), dtype=torch.long, device=h.device)
        return Brackets(
            low=none, high=none.clone(), gone=none.clone(), weight=none.clone(), side=count, t=none.clone(),
            unit=count.clone(), looks=count.clone(), h_low=h.clone(), h_high=h.clone(), h_gone=h.clone(),
        )  # fmt: skip

    def open(self, at: Tensor, time: Tensor, h: Tensor, h_end: Tensor) -> None:
        self.low[at], self.high[at], self.gone[at] = 0.0, time, math.nan
        self.h_low[at], self.h_high[at], self.h_gone[at] = h, h_end, h_end
        self.weight[at], self.side[at], self.looks[at] = 1.0, 0, 0

    def narrow(self, at: Tensor, here: Tensor, pattern: Tensor) -> Tensor:
        """Take in h = here (len(at), units) at `t`; True where that is the wall, (len(at),)."""
        low, high, t, side = self.low[at], self.high[at], self.t[at], self.side[at]
        h_low, h_high = self.h_low[at], self.h_high[at]
        over = beyond(here, pattern).any(1)
        on = here.gather(1, self.unit[at][:, None])[:, 0].abs() <= rounding(here)[:, 0]
        self.gone[at], self.h_gone[at] = torch.where(over, high, low), torch.where(over[:, None], h_high, h_low)
        self.high[at], self.low[at] = torch.where(over, t, high), torch.where(over, low, t)
        self.h_high[at] = torch.where(over[:, None], here, h_high)
        self.h_low[at] = torch.where(over[:, None], h_low, here)
        moved = torch.where(over, 1, -1)
        self.weight[at] = torch.where(side == moved, 0.5 * self.weight[at], 1.0)
        self.side[at] = moved
        self.looks[at] += 1
        return on & ~over

    def guess(self, at: Tensor, pattern: Tensor) -> None:
        before, after, low, high = self.h_low[at], self.h_high[at], self.low[at], self.high[at]
        share = crossing(before, after, self.h_gone[at], (self.gone[at] - low) / (high - low))
        tilt = torch.where(self.side[at] < 0, 1 / self.weight[at], self.weight[at])[:, None]
        stuck = self.weight[at][:, None] < STUCK
        share = torch.where(stuck, tilt * before / (tilt * before - after), share)
        # a chain that has just left this wall comes back to it later: look half-way, not at once
        leaving = (before.abs() <= rounding(before)) | (before * after > 0)
        share = torch.where(leaving, 0.5, share)
        share, self.unit[at] = torch.where(beyond(after, pattern), share, math.inf).min(1)
        self.t[at] = low + share * (high - low)


def crossing(before: Tensor, after: Tensor, third: Tensor, at: Tensor) -> Tensor:
    """Where h crosses zero between 0 and 1, guessed from h (chains, units) there and at a third place `at` (chains,):
    on the parabola t(h) through the three; on the chord where that leaves (0, 1), or where `at` is nan: there is none.
    """
    chord = before / (before - after)
    bent = before * third / ((after - before) * (after - third))
    bent = bent + at[:, None] * before * after / ((third - before) * (third - after))
    return torch.where((bent > 0) & (bent < 1), bent, chord)


@torch.no_grad()
def next_wall(
    field: Field, w: Tensor, p: Tensor, time: Tensor, pattern: Tensor, h: Tensor, h_end: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The earliest wall on the arcs: t, the unit, h there, and where the search failed. Arguments as for `Brackets`."""
    search, h_found, todo = Brackets.empty(h), h.clone(), torch.arange(len(w), device=w.device)
    search.open(todo, time, h, h_end)
    for _ in range(MAX_BRACKETS):
        search.guess(todo, pattern[todo])
        here = field.walls(turned(w[todo], p[todo], search.t[todo])[0])
        h_found[todo] = here
        todo = todo[~search.narrow(todo, here, pattern[todo])]
        if not len(todo):
            break
    failed = torch.zeros(len(w), dtype=torch.bool, device=w.device)
    failed[todo] = True
    return search.t, search.unit, h_found.scatter(1, search.unit[:, None], 0.0), failed
