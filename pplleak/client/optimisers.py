"""The optimisers of local training and the schedules of their learning rate, one function each, as torch has them.

    optimiser(w, slope, state, step, lr, *, settings) -> (w, state)          schedule(lr, at, *, settings) -> lr

An optimiser moves one parameter w (rows, *shape) against its slope, the gradient there, entry by entry. `state` is what
it remembers of that parameter, () before the first step; `step` counts from 1. Everything stays differentiable in what
the slope depends on. A function with these arguments is all that a new one needs: it is found here by its name, and its
settings are those of the class of `torch.optim` with that name in any case, which refuses impossible ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pplleak import programs, settings, sources
from pplleak.errors import BadInput, require_positive, unknown
from pplleak.settings import Named

State = tuple[Tensor, ...]
Per = Literal["step", "epoch"]
Kind = Literal["optimizer", "schedule"]
MOST = 1e12  # of a setting
ARGUMENTS: dict[Kind, list[str]] = {"optimizer": ["w", "slope", "state", "step", "lr"], "schedule": ["lr", "at"]}


class At(NamedTuple):
    """Where a training is, before a step: so many steps and whole epochs of all are done. `epochs` is 0 where the
    training counts steps only."""

    step: int
    steps: int
    epoch: int = 0
    epochs: int = 0

    def of(self, per: Per) -> tuple[int, int]:
        """How many steps, or epochs, are done, and how many there are; raises BadInput where epochs are not counted."""
        if per == "step":
            return self.step, self.steps
        if not self.epochs:
            raise BadInput("the learning rate's schedule counts epochs (per=epoch), and the training steps: say its "
                           "epochs, or take per=step")  # fmt: skip
        return self.epoch, self.epochs


def sgd(
    w: Tensor, slope: Tensor, state: State, step: int, lr: float, *,
    momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False,
) -> tuple[Tensor, State]:  # fmt: skip
    """w − lr v,   v ← momentum v + (1 − dampening) (slope + weight_decay w); the first v is the slope itself.

    Args:
        momentum: 0 steps along the slope.
        dampening: of what a slope adds to v.
        weight_decay: λ of λ/2 ‖w‖² in the loss.
        nesterov: step along slope + momentum v instead of v.
    """
    slope = slope + weight_decay * w if weight_decay else slope
    if not momentum:
        return w - lr * slope, ()
    v = momentum * state[0] + (1 - dampening) * slope if state else slope
    return w - lr * (slope + momentum * v if nesterov else v), (v,)


def adam(
    w: Tensor, slope: Tensor, state: State, step: int, lr: float, *,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
) -> tuple[Tensor, State]:  # fmt: skip
    """w − lr m̂ / (√v̂ + eps), m̂ and v̂ the debiased running means of slope and slope² (Kingma and Ba 2015).

    Args:
        betas: decay of the two means.
        eps: what is added to √v̂.
        weight_decay: λ of λ/2 ‖w‖² in the loss.
    """
    slope = slope + weight_decay * w if weight_decay else slope
    m, v = state or (torch.zeros_like(slope), torch.zeros_like(slope))
    m = betas[0] * m + (1 - betas[0]) * slope
    v = betas[1] * v + (1 - betas[1]) * slope.square()
    root = _root(v) / math.sqrt(1 - betas[1] ** step)
    return w - lr / (1 - betas[0] ** step) * m / (root + eps), (m, v)


def adamw(
    w: Tensor, slope: Tensor, state: State, step: int, lr: float, *,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01,
) -> tuple[Tensor, State]:  # fmt: skip
    """Adam from (1 − lr weight_decay) w, the decay apart from the slope (Loshchilov and Hutter 2019).

    Args:
        betas: decay of the two means.
        eps: what is added to √v̂.
        weight_decay: the share of w that a step takes off is lr times it.
    """
    return adam((1 - lr * weight_decay) * w, slope, state, step, lr, betas=betas, eps=eps)


def _root(v: Tensor) -> Tensor:
    """√v with finite derivatives at v = 0, the slope of a dead pixel's weight: there they are 0, as those of v = slope²
    are. Below the bound the second one overflows; its root is far below any eps, 1e-13 in float32."""
    return v.clamp(min=torch.finfo(v.dtype).max ** (-2 / 3)).sqrt()


def constant(lr: float, at: At) -> float:
    """The same in every step."""
    return lr


def cosine(lr: float, at: At, *, eta_min: float = 0.0, T_max: int | None = None, per: Per = "step") -> float:
    """From lr down to eta_min on half a cosine.

    Args:
        eta_min: the learning rate at its end.
        T_max: its length in steps or epochs; None means all of the training.
        per: moves on once a step, or once an epoch.
    """
    k, n = at.of(per)
    if not eta_min >= 0:
        raise BadInput(f"eta_min of the cosine must be 0 or more, not {eta_min}")
    require_positive(T_max=n if T_max is None else T_max)
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * k / (n if T_max is None else T_max))) / 2


def step(lr: float, at: At, *, step_size: int = 1, gamma: float = 0.1, per: Per = "step") -> float:
    """Multiplied by gamma after every step_size steps or epochs.

    Args:
        step_size: steps or epochs between two changes.
        gamma: the factor.
        per: counts steps, or epochs.
    """
    require_positive(step_size=step_size, gamma=gamma)
    return lr * gamma ** (at.of(per)[0] // step_size)


def exponential(lr: float, at: At, *, gamma: float = 0.9, per: Per = "step") -> float:
    """Multiplied by gamma after every step or epoch.

    Args:
        gamma: the factor.
        per: moves on once a step, or once an epoch.
    """
    return step(lr, at, gamma=gamma, per=per)


def clipped(slopes: Mapping[str, Tensor], norm: float) -> dict[str, Tensor]:
    """The slopes (rows, *shape) of all parameters, shortened where together they are longer than `norm`, each row by
    itself, as torch.nn.utils.clip_grad_norm_ does it: times norm / (length + 1e-6)."""
    square = torch.stack([s.reshape(len(s), -1).square().sum(1) for s in slopes.values()]).sum(0)
    long = square.sqrt() + 1e-6 > norm
    length = torch.where(long, square, 1).sqrt()  # whose derivative at 0 would be infinite
    share = torch.where(long, norm / (length + 1e-6), 1)
    return {n: share.reshape(-1, *[1] * (s.dim() - 1)) * s for n, s in slopes.items()}


def names(kind: Kind) -> dict[str, str]:
    """Every optimiser, or every schedule, with the first line of its docstring."""
    return sources.functions(Path(__file__), ARGUMENTS[kind])


def bound(kind: Kind, named: Named) -> Callable[..., Any]:
    """The function of an optimiser or a schedule with its settings."""
    return functools.partial(globals()[named.name], **named.settings)


def keeps_sums(named: Named) -> bool:
    """Whether an optimiser's steps sum to 0 where slopes do, as a last bias' do under cross entropy: not where each
    entry has a scale of its own (Adam), nor where w decays."""
    w, slope = torch.tensor([[[0.5, 1.0, 2.0], [3.0, -1.0, -2.0]]], dtype=torch.float64).unbind(1)
    moved, _ = bound("optimizer", named)(w, slope, (), 1, 1.0)
    return abs(float((moved - w).sum())) < 1e-9


def check(kind: Kind, given: str | Named) -> Named:
    """An optimiser or a schedule with all its settings, those that are not given at their defaults.

    Raises:
        BadInput: an unknown name or setting, a setting of another kind, or one that is impossible.
    """
    named = Named.parse(given)
    if named.name not in (known := names(kind)):
        raise unknown(f"local {kind}", named.name, known)
    what = f"the local {kind} {named.name}"
    whole = settings.check(named, programs.settings(globals()[named.name]), what)
    for name, value in whole.settings.items():
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, int | float)]
        if not all(abs(v) <= MOST for v in numbers):
            raise BadInput(f"{name} of {what} is {value}: a number must be finite, and no larger than {MOST:g}")
    if kind == "schedule":
        bound(kind, whole)(1.0, At(0, 1, 0, 1))
        return whole
    torchs = next(k for n, k in vars(torch.optim).items() if n.lower() == named.name)
    try:
        torchs([torch.zeros(1)], lr=1.0, **whole.settings)
    except ValueError as error:
        raise BadInput(f"{what} cannot be set to {whole}: {error}") from error
    return whole
