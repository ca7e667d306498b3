"""The privacy that DP-SGD spends, by Opacus's accountants (the extra `pplleak[opacus]`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pplleak.errors import BadInput, require_positive

Accountant = Literal["rdp", "prv"]


def require_opacus() -> None:
    """Raise BadInput, with the way to install it, where Opacus is missing."""
    try:
        import opacus.accountants  # noqa: F401 (three seconds: only where an ε is asked for)
    except ImportError as error:
        raise BadInput("the ε of DP-SGD is reckoned by Opacus, which is not installed: pip install pplleak[opacus]") \
            from error  # fmt: skip


def epsilon(
    noise_multiplier: float, sample_rate: float, steps: int, *, delta: float = 1e-5, accountant: Accountant = "rdp"
) -> float:
    """ε such that `steps` releases of the Poisson-subsampled Gaussian mechanism are (ε, δ)-differentially private.

    Neighbouring data differ by one example that is there or not. Source: Mironov, Talwar & Zhang 2019 (rdp); Gopi, Lee
    & Wutschitz 2021 (prv, which is tighter, and slow for little noise).

    Args:
        noise_multiplier: z, the noise's standard deviation in units of the clip.
        sample_rate: q in (0, 1], the probability that an example takes part in a step.
        steps: releases; none cost nothing.
    """
    require_positive(noise_multiplier=noise_multiplier, sample_rate=sample_rate, delta=delta)
    if sample_rate > 1 or delta >= 1:
        raise BadInput(f"a sample rate is at most 1 and a δ below 1, not {sample_rate} and {delta}")
    if steps == 0:
        return 0.0
    return composed([(noise_multiplier, sample_rate, steps)], delta=delta, accountant=accountant)


def composed(
    history: Sequence[tuple[float, float, int]], *, delta: float = 1e-5, accountant: Accountant = "rdp"
) -> float:
    """ε of several runs of releases one after another: (noise multiplier, sample rate, steps) of each, as Opacus'
    accountants keep them; the rest as for `epsilon`."""
    require_opacus()
    from opacus.accountants import create_accountant

    spent = create_accountant(accountant)
    spent.history = list(history)
    return float(spent.get_epsilon(delta))
