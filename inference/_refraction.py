"""The refractive kernel of `refractive.py`: rotate to the next kink, cross or reflect, kick, accept or reject.

See that file for the equations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pplleak.inference.hmc import DIVERGED, Info
from pplleak.kinks import Target, flipped

MAX_EVENTS = 2000  # kinks in one drift; a trajectory that meets more is rejected, as its reverse would be


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
    force = by_h @ target.H + by_q @ target.Q + 2 * by_s[:, None] * half_slope
    pull = target.prior.b + target.prior.times(state.w)
    prior = 0.5 * (target.prior.c + (state.w * (target.prior.b + pull)).sum(1))
    return phi.detach() + prior, force + pull


def drift(target: Target, state: State, p: Tensor, time: Tensor, jumps: bool = True) -> tuple[State, Tensor, Tensor]:
    """The exact flow of ½w² + ½p², a rotation by `time` (chains,), refracted or reflected at every kink it meets:

        w(t) = w cos t + p sin t      p(t) = p cos t − w sin t      h(t) = c + (h − c) cos t + ḣ sin t,   c = h at w = 0

    A push p(t) += κ n turns the rotation's start, w += −κ sin t n and p += κ cos t n. So between kinks nothing changes,
    and at a kink only what H, Q and H M see of (w, p) does, together with the coefficients of ‖x‖² along the rotation:
    an event costs a few rows of length width₁, and the pixels are touched once a drift.

    Returns the state, the momentum p (chains, dim) and the number of kinks met. jumps=False takes every ΔU for zero:
    the Metropolis test still keeps the target, but accepts little (the tests use it to show what the jumps do).
    """
    net, full, width = target.net, 2 * math.pi, len(target.h0)
    masks, since = state.masks.clone(), torch.zeros_like(time)
    u = torch.cat([state.h - target.h0, state.q - target.q0, state.w @ target.HM.mT], 1)
    v = torch.cat([p @ target.H.mT, p @ target.Q.mT, p @ target.HM.mT], 1)
    b, mw, mp = target.sqnorm.b, target.sqnorm.times(state.w), target.sqnorm.times(p)
    bw, bp, ww, wp, pp = state.w @ b, p @ b, (state.w * mw).sum(1), (state.w * mp).sum(1), (p * mp).sum(1)
    w_pushed, p_pushed = torch.zeros_like(state.h), torch.zeros_like(state.h)  # along the rows of H
    events = torch.zeros_like(time, dtype=torch.long)
    live = torch.arange(len(masks), device=masks.device)

    def turned(chains: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cos, sin = since[chains].cos(), since[chains].sin()
        a, b = u[chains, :columns], v[chains, :columns]
        return a * cos[:, None] + b * sin[:, None], b * cos[:, None] - a * sin[:, None], cos, sin

    while len(live):
        # h − c = R cos(t − θ) sinks through −c at t − θ = arccos(−c/R), and rises through it at minus that
        offset, rate, _, _ = turned(live, width)
        centre = net.preactivations(target.h0.expand_as(offset), masks[live])
        offset, rates = net.rates(offset, masks[live]), net.rates(rate, masks[live])
        radius = torch.hypot(offset, rates)
        angle = torch.acos((-centre / radius).clamp(-1, 1))
        arrival = torch.remainder(torch.atan2(rates, offset) + torch.where(masks[live], angle, -angle), full)
        arrival = torch.where(arrival > full - 1e-9, 0.0, arrival)  # just behind: two kinks met at once
        t, unit = torch.where(radius > centre.abs(), arrival, math.inf).min(1)
        hit = since[live] + t < time[live]
        live, unit, t = live[hit], unit[hit], t[hit]
        if not len(live):
            break
        since[live] += t
        events[live] += 1
        here = masks[live]
        now, rate, cos, sin = turned(live, 2 * width)
        rate = net.rates(rate[:, :width], here).gather(1, unit[:, None])[:, 0]
        sqnorm = target.sqnorm.c + 2 * (bw[live] * cos + bp[live] * sin)
        sqnorm = sqnorm + ww[live] * cos**2 + 2 * wp[live] * sin * cos + pp[live] * sin**2
        h, q = target.h0 + now[:, :width], target.q0 + now[:, width:]
        jump = net.jump(h, q, sqnorm, here, unit) if jumps else 0 * rate
        # the kink's normal is n = rᵀH / ‖rᵀH‖, and p·n = rate / ‖rᵀH‖
        r = net.normal(here, unit)
        seen = target.pushes[unit] if len(net.widths) == 1 else r @ target.pushes
        square = (seen[:, :width] * r).sum(1)
        spare = rate.square() / square - 2 * jump
        cross = spare > 0
        after = torch.where(cross, rate.sign() * (spare.clamp(min=0) * square).sqrt(), -rate)
        push = (after - rate) / square
        dw, dp = -push * sin, push * cos
        m, mu, mv = (
            (seen[:, 2 * width :] * r).sum(1),
            (u[live, 2 * width :] * r).sum(1),
            (v[live, 2 * width :] * r).sum(1),
        )
        ww[live] += dw * (2 * mu + dw * m)
        wp[live] += dw * mv + dp * mu + dw * dp * m
        pp[live] += dp * (2 * mv + dp * m)
        along = r @ target.Hb
        bw[live] += dw * along
        bp[live] += dp * along
        u[live] += dw[:, None] * seen
        v[live] += dp[:, None] * seen
        w_pushed[live] += dw[:, None] * r
        p_pushed[live] += dp[:, None] * r
        masks[live] = torch.where(cross[:, None], flipped(here, unit), here)
        live = live[events[live] < MAX_EVENTS]
    since = time
    now, _, cos, sin = turned(torch.arange(len(masks), device=masks.device), 2 * width)
    w, p = state.w + w_pushed @ target.H, p + p_pushed @ target.H
    cos, sin = cos[:, None], sin[:, None]
    new = State(w * cos + p * sin, target.h0 + now[:, :width], target.q0 + now[:, width:], masks)
    return new, p * cos - w * sin, events


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
