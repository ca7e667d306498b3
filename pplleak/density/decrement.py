"""How far below a maximum a search has stopped: the nats that are left to climb.

With f = −log p, the gain of the minimiser of f's quadratic model at z is the Newton decrement

    λ²/2 = ½ gᵀ H⁻¹ g,   g = ∇f(z),   H = ∇²f(z)                  (Boyd & Vandenberghe 2004, section 9.5.1)

H⁻¹g comes from conjugate gradients on Hessian-vector products, with no matrix and no prior draws (Nocedal & Wright
2006, section 7.1, algorithm 7.1). Their k-th iterate gains ½ Σ_{i<k} α_i ‖r_i‖², which grows towards λ²/2, so that
stopping early gives a lower bound; the rest is at most ½ ‖r_k‖² / λ_min(H), where the least Ritz value of the
iteration stands for λ_min.

A quadratic model is a promise. It is kept or not: the density is looked up along the step, at several lengths in one
batch, and what it really gains there is a lower bound that needs no model. That bound is what remains where H has
negative curvature, and where the model promises more than twice of what is found (kinks; far from any maximum).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pplleak.density.box import Box
from pplleak.progress import ProgressBar, silent

LogDensity = Callable[[Tensor], Tensor]
ENOUGH = 0.01  # nats: where a climb has ended
DOUBT = 1.0  # nats: where it has not
ROUNDING = 16  # of a log-density, in units in the last place of the precision it is computed in
LENGTHS = (2.0, 1.0, 0.5, 0.25, 0.1, 0.03, 0.01)  # of the step, at which the density is looked up
WAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # along negative curvature, in units of one a coordinate


@dataclass(frozen=True, eq=False)
class Decrement:
    """What is left to climb from one point.

    nats      λ²/2, or a lower bound on what is left; infinite where the slope is not a number
    at_least  True where it is such a bound: negative curvature, products ran out, or the model's promise was not kept
    step      (dim,) −H⁻¹g as far as it was computed
    best      (dim,) the highest of the points that were looked up; z itself where none is higher
    gain      nats that `best` really lies above z
    products  Hessian-vector products that it took
    """

    nats: float
    at_least: bool
    step: Tensor
    best: Tensor
    gain: float
    products: int

    @property
    def number(self) -> float | None:
        """The nats as a file can hold them: None for infinity."""
        return self.nats if math.isfinite(self.nats) else None

    @property
    def doubt(self) -> str:
        """Why the point is no maximum; "" where it is one to within DOUBT nats."""
        if self.nats <= DOUBT:
            return ""
        if not math.isfinite(self.nats):
            return "not at a maximum: the slope is not a number there"
        return f"not at a maximum: {'at least ' * self.at_least}{self.nats:.3g} nats left to climb"

    @property
    def doubts(self) -> tuple[str, ...]:
        """The doubt, of the search inside an inference that goes on from there; () where there is none."""
        return (f"the search for the MAP is {self.doubt}",) if self.doubt else ()


@dataclass(frozen=True, eq=False)
class _Solved:
    """The end of the iteration: step, the gain that it promises, a direction of negative curvature where one was met,
    whether the rest is small, the number of products."""

    step: Tensor
    promised: float
    direction: Tensor | None
    finished: bool
    products: int


def decrement(
    log_density: LogDensity, z: Tensor, *, box: Box | None = None, products: int = 64, tolerance: float = 0.02
) -> Decrement:
    """Nats left to climb from z (dim,), at the price of at most `products` Hessian-vector products and one batch.

    With a box, coordinates that lie on a bound that the slope pushes against do not count.

    Args:
        log_density: z (k, dim) -> (k,), twice differentiable almost everywhere; the k do not see each other.
        tolerance: the part of λ²/2 that may be missing where it does not count as a bound.
    """
    at = z.detach()[None].clone().requires_grad_()
    height = log_density(at).sum()
    (gradient,) = torch.autograd.grad(height, at, create_graph=True)
    slope = gradient.detach()[0].double()
    if not bool(slope.isfinite().all()):
        return Decrement(math.inf, True, torch.zeros_like(slope), z.detach(), 0.0, 0)
    free = torch.ones_like(slope, dtype=torch.bool)
    if box is not None:
        here = z.detach()
        free = ~(((here <= box.low) & (slope <= 0)) | ((here >= box.high) & (slope >= 0)))
    slope = slope * free

    def curvature(p: Tensor) -> Tensor:
        """H p on the free coordinates; 0 where it cannot be had (an operation without a further derivative)."""
        if not gradient.requires_grad:  # log-density is linear
            return torch.zeros_like(p)
        try:
            (row,) = torch.autograd.grad(
                gradient, at, p[None].to(at.dtype), retain_graph=True, allow_unused=True, materialize_grads=True
            )
        except (RuntimeError, NotImplementedError):
            return torch.zeros_like(p)
        return -row[0].double() * free

    found = _conjugate_gradients(curvature, slope, min(products, 2 * int(free.sum())), tolerance)
    best, gain = _look(log_density, z.detach(), found, box)
    rounding = ROUNDING * torch.finfo(z.dtype).eps * abs(float(height.detach()))  # hides what a step really gains
    kept = found.promised < max(ENOUGH, rounding) or gain >= found.promised / 2
    if found.finished and kept:
        return Decrement(found.promised, False, found.step, best, gain, found.products)
    return Decrement(max(gain, found.promised * kept), True, found.step, best, gain, found.products)


def _conjugate_gradients(
    curvature: Callable[[Tensor], Tensor], slope: Tensor, products: int, tolerance: float
) -> _Solved:
    """Solve H s = slope from s = 0 until the rest is worth at most `tolerance` of the gain, twice in a row."""
    step, r = torch.zeros_like(slope), slope.clone()
    p, square, promised, small = r.clone(), float(r @ r), 0.0, 0
    diagonal: list[float] = []
    off: list[float] = []
    carried = 0.0
    for k in range(products):
        if square == 0:
            return _Solved(step, promised, None, True, k)
        along = curvature(p)
        bent = float(p @ along)
        if not bent > 1e-12 * float(p @ p):  # also where it is not a number
            return _Solved(step, promised, p, False, k + 1)
        length = square / bent
        step, r = step + length * p, r - length * along
        promised += length * square / 2
        left = float(r @ r)
        diagonal.append(1 / length + carried)
        ratio = left / square
        carried = ratio / length
        ritz = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if off:
            beside = torch.tensor(off, dtype=torch.float64)
            ritz = ritz + beside.diag(1) + beside.diag(-1)
        off.append(math.sqrt(ratio) / length)
        least = float(torch.linalg.eigvalsh(ritz)[0])
        small = small + 1 if left / 2 <= tolerance * promised * least else 0
        if small == 2 or left == 0:
            return _Solved(step, promised, None, True, k + 1)
        p, square = r + ratio * p, left
    return _Solved(step, promised, None, square == 0 or small > 0, products)


def _look(log_density: LogDensity, z: Tensor, found: _Solved, box: Box | None) -> tuple[Tensor, float]:
    """The highest of z and the points along the step (and along negative curvature), and how much higher it is."""
    lengths = torch.tensor([0.0, *LENGTHS], dtype=torch.float64, device=z.device)
    moves = lengths[:, None] * found.step
    if found.direction is not None:
        far = math.sqrt(len(z)) * found.direction / found.direction.norm().clamp(min=1e-300)
        ways = torch.tensor(WAYS, dtype=torch.float64, device=z.device)
        moves = torch.cat([moves, found.step + ways[:, None] * far])
    tries = z + moves.to(z.dtype)
    if box is not None:
        box.clamp_(tries)
    tries[0] = z
    with torch.no_grad():
        heights = torch.cat(
            [log_density(part).double() for part in tries.split(4)]
        )  # no more memory than a climb takes
    heights = torch.nan_to_num(heights, nan=-math.inf, posinf=-math.inf)
    best = int(heights.argmax())
    gain = float(heights[best] - heights[0])
    return (tries[best], gain) if gain > 0 else (z, 0.0)


def polish(
    log_density: LogDensity, z: Tensor, steps: int, *, progress: ProgressBar = silent, **how: Any
) -> tuple[Tensor, Decrement]:
    """Truncated Newton steps from z (dim,), each at the best of the lengths looked up, until ENOUGH is left, a step
    gains nothing, or `steps` are done; gives where they end and what is left there. how: as for `decrement`."""
    found = decrement(log_density, z, **how)
    if found.nats <= ENOUGH:
        return z, found
    for _ in progress("polish", steps):
        if found.nats <= ENOUGH or found.gain <= ENOUGH / 10:
            break
        z = found.best
        found = decrement(log_density, z, **how)
    return z, found


def settled(log_density: LogDensity, z: Tensor, steps: int = 10) -> tuple[Tensor, Decrement]:
    """The point z (dim,) that a search inside another inference has located, polished only where more than DOUBT nats
    are left, and what is left."""
    found = decrement(log_density, z)
    return (z, found) if found.nats <= DOUBT else polish(log_density, z, steps)
