"""DP-SGD by Opacus: what a step clips, adds and spends, read off the optimiser that takes it."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from pplleak.errors import BadInput, printable
from pplleak.federation import privacy
from pplleak.settings import Named

# one clip for the whole gradient of an example; per-layer and adaptive clips are other channels
KNOWN = ("DPOptimizer", "DistributedDPOptimizer", "DPOptimizerFastGradientClipping",
         "DistributedDPOptimizerFastGradientClipping")  # fmt: skip


@dataclass(frozen=True)
class Added:
    """What Opacus does to one step: z, the clip, the lot that it divides by; and what its accountant had written down
    by then, (noise multiplier, sample rate, steps) of each run, () without one."""

    noise_multiplier: float
    clip: float
    lot: float
    history: tuple[tuple[float, float, int], ...]

    def channel(self, size: int) -> Named:
        """The channel of a step that took `size` examples."""
        lot = 0 if self.lot == size else int(self.lot)
        return Named("dpsgd", {"noise_multiplier": self.noise_multiplier, "clip": self.clip, "lot": lot})

    def spent(self, delta: float) -> dict[str, float]:
        """ε at `delta` of all steps up to this one, by RDP, and the sampling rate; {} without an accountant."""
        if not self.history:
            return {}
        epsilon = privacy.composed(self.history, delta=delta)
        return {"epsilon": epsilon, "delta": delta, "sample_rate": float(self.history[-1][1])}


def added(inner: Optimizer) -> Added | None:
    """What Opacus' optimiser adds to the step that an optimiser of torch is about to take; None without Opacus.

    Opacus' optimiser holds torch's, and calls its step: it is the caller.

    Raises:
        BadInput: it clips in a way that no channel has.
    """
    outer = _caller(inner)
    if outer is None:
        return None
    if type(outer).__name__ not in KNOWN:
        raise BadInput(f"Opacus' {printable(type(outer).__name__)} clips otherwise than DP-SGD does, which is not "
                       "modelled: leave `clipping` of make_private flat")  # fmt: skip
    hook = outer.step_hook
    accountant = None if hook is None else inspect.getclosurevars(hook).nonlocals.get("self")
    lot = outer.expected_batch_size if outer.loss_reduction == "mean" else 1
    history = tuple(tuple(run) for run in getattr(accountant, "history", ()))
    return Added(float(outer.noise_multiplier), float(outer.max_grad_norm), lot, history)


def _caller(inner: Optimizer) -> Any:
    """The optimiser among the callers of this function that holds another one."""
    frame = sys._getframe()
    while frame is not None:
        outer = frame.f_locals.get("self")
        if outer is not inner and getattr(outer, "original_optimizer", None) is inner:
            return outer
        frame = frame.f_back  # type: ignore[assignment]
    return None
