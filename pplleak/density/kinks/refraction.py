"""The kernel of `inference/refractive.py`: rotate to the next kink, cross or reflect, kick, accept or reject.

Kinks are hyperplanes here, and the next one on an arc is known in closed form. See that file for the equations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pplleak.density.hamiltonian import DIVERGED, Info
from pplleak.density.kinks.perceptron import Perceptron, flipped

MAX_EVENTS = 2000  # kinks in one drift; a trajectory that meets more is rejected, as its reverse would be


@dataclass(frozen=True, eq=False)
class Quadratic:
    """c + 2 b·w + wᵀ M w; M is kept as its diagonal (dim,) where it is diagonal, else (dim, dim)."""

    c: Tensor
    b: Tensor
    m: Tensor

    @staticmethod
    def of(factor: Tensor, at: Tensor) -> Quadratic:
        """‖at + factor w‖² as a quadratic in w."""
        m = factor.mT @ factor
        d = m.diagonal()
        if float((m - d.diag()).abs().max()) <= 1e-10 * float(d.max()):
            m = d
        return Quadratic(at.square().sum(), factor.mT @ at, m)

    def times(self, v: Tensor) -> Tensor:
        """M v for every chain."""
        return v * self.m if self.m.dim() == 1 else v @ self.m

    def value(self, w: Tensor) -> Tensor:
        return self.c + (w * (2 * self.b + self.times(w))).sum(1)


@dataclass(frozen=True, eq=False)
class Target:
    """U(w) = Φ(h₁(w), q(w), ‖x(w)‖²; masks) + ½ (z − centre)ᵀ precision (z − centre) in whitened z = mode + L w.

    h₁ = h0 + H w,  q = q0 + Q w  (width₁,), (width₁, dim);  ‖x‖² = c + 2 b·w + wᵀ M w;  HM = H M, Hb = H b;
    seen = [H; Q; HM] (3 width₁, dim);  pushes = H seenᵀ (width₁, 3 width₁), what a push along a row of H does to seen p
    """

    net: Perceptron
    h0: Tensor
    H: Tensor
    q0: Tensor
    Q: Tensor
    HM: Tensor
    Hb: Tensor
    seen: Tensor
    pushes: Tensor
    sqnorm: Quadratic
    prior: Quadratic

    def project(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """h₁ and q at w (chains, dim)."""
        return self.h0 + w @ self.H.mT, self.q0 + w @ self.Q.mT


@dataclass(frozen=True, eq=False)
class State:
    """Chains in place: w (chains, dim), h = h₁ and q (chains, width₁), masks (chains, units)."""

    w: Tensor
    h: Tensor
    q: Tensor
    masks: Tensor


def place(target: Target, w: Tensor) -> State:
    """The state at w, with the masks read off the position."""
    h, q = target.project(w)
    return State(w, h, q, target.net.pattern(h))


def energy_and_force(target: Target, state: State) -> tuple[Tensor, Tensor]:
    """U (chains,) and ∇U (chains, dim) with the masks held fixed."""
    half_slope = target.sqnorm.b + target.sqnorm.times(state.w)
    sqnorm = target.sqnorm.c + (state.w * (target.sqnorm.b + half_slope)).sum(1)
    h, q, s = (t.detach().requires_grad_() for t in (state.h, state.q, sqnorm))
    with torch.enable_grad():
        phi = target.net.energy(h, q, s, state.masks)
        by_h, by_q, by_s = torch.autograd.grad(phi.sum(), (h, q, s))
    force = torch.cat([by_h, by_q], 1) @ target.seen[: 2 * len(target.h0)] + 2 * by_s[:, None] * half_slope
    pull = target.prior.b + target.prior.times(state.w)
    prior = 0.5 * (target.prior.c + (state.w * (target.prior.b + pull)).sum(1))
    return phi.detach() + prior, force + pull


def drift(target: Target, state: State, p: Tensor, time: Tensor, jumps: bool = True) -> tuple[State, Tensor, Tensor]:
    """The exact flow of ½w² + ½p², a rotation by `time` (chains,) < π, refracted or reflected at every kink it meets:

        w(t) = w cos t + p sin t      p(t) = p cos t − w sin t      h(t) = c + (h − c) cos t + ḣ sin t,   c = h at w = 0

    A push p(t) += κ n turns the rotation's start, w += −κ sin t n and p += κ cos t n. So between kinks nothing changes,
    and at a kink only what H, Q and H M see of (w, p) does, together with the coefficients of ‖x‖² along the rotation:
    an event costs a few rows of length width₁, and the pixels are touched once a drift.

    Returns the state, the momentum p (chains, dim) and the number of kinks met. jumps=False takes every ΔU for zero:
    the Metropolis test still keeps the target, but accepts little (the tests use it to show what the jumps do).
    """
    net, width, shallow = target.net, len(target.h0), len(target.net.widths) == 1
    masks, since = state.masks.clone(), torch.zeros_like(time)
    u = torch.cat([state.h - target.h0, state.q - target.q0, state.w @ target.HM.mT], 1)
    v = p @ target.seen.mT
    b, mw, mp = target.sqnorm.b, target.sqnorm.times(state.w), target.sqnorm.times(p)
    bw, bp, ww, wp, pp = state.w @ b, p @ b, (state.w * mw).sum(1), (state.w * mp).sum(1), (p * mp).sum(1)
    w_pushed, p_pushed = torch.zeros_like(state.h), torch.zeros_like(state.h)  # along the rows of H
    events, lost = torch.zeros_like(time, dtype=torch.long), torch.zeros_like(time, dtype=torch.bool)
    start = target.h0.expand_as(state.h)

    def turned(a: Tensor, b: Tensor, sign: int = 1) -> Tensor:
        """a cos t ± b sin t now."""
        return torch.addcmul(a * since.cos()[:, None], b, since.sin()[:, None], value=sign)

    while True:
        offset, rate = turned(u[:, :width], v[:, :width]), turned(v[:, :width], u[:, :width], -1)
        centre, offset = net.preactivations(start, masks), net.rates(offset, masks)
        t, unit = first(centre, offset, net.rates(rate, masks), masks)
        hit = (since + t < time) & ~lost
        if not bool(hit.any()):
            break
        since = torch.where(hit, since + t, since)
        events += hit
        lost = events >= MAX_EVENTS
        cos, sin = since.cos(), since.sin()
        now, rate = turned(u[:, : 2 * width], v[:, : 2 * width]), turned(v[:, :width], u[:, :width], -1)
        sqnorm = target.sqnorm.c + 2 * (bw * cos + bp * sin)
        sqnorm = sqnorm + ww * cos**2 + 2 * wp * sin * cos + pp * sin**2
        # the kink's normal is n = rᵀH / ‖rᵀH‖, and p·n = rate / ‖rᵀH‖
        r = net.normal(masks, unit)
        seen = target.pushes[unit] if shallow else r @ target.pushes
        at = unit[:, None]

        def along(rows: Tensor, r: Tensor = r, at: Tensor = at) -> Tensor:
            return rows.gather(1, at)[:, 0] if shallow else (rows * r).sum(1)

        speed, square = along(rate), along(seen[:, :width])
        h, q = target.h0 + now[:, :width], target.q0 + now[:, width:]
        jump = net.jump(h, q, sqnorm, masks, unit) if jumps else 0 * speed
        spare = speed.square() / square - 2 * jump
        cross = spare > 0
        after = torch.where(cross, speed.sign() * (spare.clamp(min=0) * square).sqrt(), -speed)
        push = torch.where(hit, (after - speed) / square, 0.0)
        dw, dp = -push * sin, push * cos
        m, mu, mv = along(seen[:, 2 * width :]), along(u[:, 2 * width :]), along(v[:, 2 * width :])
        ww += dw * (2 * mu + dw * m)
        wp += dw * mv + dp * mu + dw * dp * m
        pp += dp * (2 * mv + dp * m)
        bw += dw * (r @ target.Hb)
        bp += dp * (r @ target.Hb)
        for start_row, pushed, d in ((u, w_pushed, dw[:, None]), (v, p_pushed, dp[:, None])):
            start_row.addcmul_(d, seen)
            pushed.addcmul_(d, r)
        masks = torch.where((cross & hit)[:, None], flipped(masks, unit), masks)
    since = time
    now, cos, sin = turned(u[:, : 2 * width], v[:, : 2 * width]), since.cos()[:, None], since.sin()[:, None]
    w, p = state.w + w_pushed @ target.H, p + p_pushed @ target.H
    new = State(w * cos + p * sin, target.h0 + now[:, :width], target.q0 + now[:, width:], masks)
    return new, p * cos - w * sin, events


def first(centre: Tensor, offset: Tensor, rates: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """When the next unit switches, 0 ≤ t < π, and which, (chains,): h(t) = centre + offset cos t + rates sin t = 0.

    In τ = tan ½t, monotone in t, h is a parabola over 1 + τ²: (c − o) τ² + 2 ḣ τ + (c + o). The sign of the mask turns
    every switch into a fall through zero, which is the root where the parabola's slope is −2√D.
    """
    side = 2 * masks.to(centre) - 1
    c, o, b = side * centre, side * offset, side * rates
    a, c = c - o, c + o
    root = torch.addcmul(b * b, a, c, value=-1).sqrt()  # nan: it never gets there
    tau = torch.where(b > 0, -(b + root) / a, c / (root - b))  # whichever of the two does not cancel
    tau, unit = torch.where(tau > -1e-9, tau, math.inf).min(1)
    return 2 * tau.clamp(min=0).atan(), unit  # just behind: two kinks met at once


def trajectory(
    target: Target, state: State, force: Tensor, p: Tensor, sizes: Tensor, steps: int, jumps: bool = True
) -> tuple[State, Tensor, Tensor, Tensor, Tensor]:
    """`steps` leapfrog steps of size `sizes` (chains,); returns state, U, ∇U, p and the kinks met."""
    half, events = 0.5 * sizes[:, None], torch.zeros_like(sizes, dtype=torch.long)
    lost = torch.zeros_like(sizes, dtype=torch.bool)
    energy = torch.zeros_like(sizes)
    for _ in range(steps):
        state, p, met = drift(target, state, p - half * (force - state.w), sizes, jumps)
        energy, force = energy_and_force(target, state)
        p, events, lost = p - half * (force - state.w), events + met, lost | (met >= MAX_EVENTS)
    return state, torch.where(lost, math.inf, energy), force, p, events


def step(
    target: Target, state: State, size: float, steps: int, jumps: bool = True
) -> tuple[State, Tensor, Info, Tensor]:
    """One trajectory of every chain and its Metropolis test; returns state, U, what happened and the kinks met."""
    h, q = target.project(state.w)  # afresh: rounding must not add up over trajectories
    state = State(state.w, h, q, state.masks)
    p = torch.randn_like(state.w)
    sizes = size * (0.8 + 0.4 * torch.rand(len(p), dtype=p.dtype, device=p.device))
    energy, force = energy_and_force(target, state)
    start = energy + 0.5 * p.square().sum(1)
    new, new_energy, _, p, events = trajectory(target, state, force, p, sizes, steps, jumps)
    end = new_energy + 0.5 * p.square().sum(1)
    change = torch.nan_to_num(end - start, nan=math.inf)
    acceptance = (-change).clamp(max=0).exp()
    accept = torch.rand_like(acceptance) < acceptance
    kept = State(*(torch.where(accept[:, None], a, b) for a, b in zip(parts(new), parts(state), strict=True)))
    info = Info(acceptance, torch.where(accept, end, start), change > DIVERGED)
    return kept, torch.where(accept, new_energy, energy), info, events


def parts(state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return state.w, state.h, state.q, state.masks
