"""What the numbers of a fit say against the model, in plain words, with the likeliest cause where one is cheap."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whose own file asks this one for its words
    from pplleak.posterior.fit import Fit

P = 1e-3  # a misfit is doubted below this p-value, after Bonferroni over the looks
SDS = 4.0  # an identity that holds up to noise is doubted beyond this many standard deviations
OUTSIDE = 5.0  # pixels are doubted outside [0, 1] by this many standard deviations of the prior
STRETCH = 2.0  # times the farthest held-out public image


def doubts(fit: Fit, batch_size: int) -> list[str]:
    """What the numbers say against the model; causes that can be named come first."""
    lines = []
    misfit = fit.p is not None and fit.p < P
    off = (
        fit.scale is not None
        and fit.scale_se is not None
        and (abs(fit.scale - 1) > SDS * fit.scale_se + fit.scale_bent)
    )
    last = fit.last_scale is not None and fit.last_scale_se is not None and (
        abs(fit.last_scale - 1) > SDS * fit.last_scale_se)  # fmt: skip
    if fit.scale is not None and fit.scale_se is not None and (off or (misfit and last)):
        cause = _of_scale(fit, batch_size)
        nats = 0.5 * ((fit.scale - 1) / fit.scale_se) ** 2
        lines.append(f"the gradient is {fit.scale:.2f} ± {fit.scale_se:.2g} times what this client would share{cause} "
                    f"({nats:.0f} nats better at this image)")  # fmt: skip
    if fit.bias_sum is not None and fit.bias_sum_se is not None and abs(fit.bias_sum) > SDS * fit.bias_sum_se:
        lines.append(f"not a cross entropy: the last bias's gradient sums to {fit.bias_sum:.2g} ± "
                    f"{fit.bias_sum_se:.1g}, and to 0 for every cross entropy")  # fmt: skip
    if fit.outside is not None and fit.outside > OUTSIDE:
        lines.append(f"pixels lie outside [0, 1], by up to {fit.outside:.0f} standard deviations of the prior: inputs "
                    "that are normalised outside the network?")  # fmt: skip
    if fit.prior_stretch is not None and fit.prior_stretch > STRETCH:
        lines.append(f"the image is unlike the public ones: {fit.prior_stretch:.1f} times as far from them as the "
                    "farthest of those that were held out")  # fmt: skip
    if misfit:
        lines.append(_of_misfit(fit))
    return lines


def beside(fit: Fit) -> list[str]:
    """What the numbers say where the cause is known: how far off the model is, without guesses."""
    return [_of_misfit(fit, guess=False)] if fit.p is not None and fit.p < P else []


def _of_scale(fit: Fit, batch_size: int) -> str:
    """The cause that a scale has, in words."""
    seen = [(c, se) for c, se in ((fit.last_scale, fit.last_scale_se), (fit.scale, fit.scale_se)) if c and se]
    last = len(seen) > 1 and seen[0][1] < 0.2 * abs(seen[0][0])  # a trained network's bias says little beforehand
    c, se = seen[0] if last else seen[-1]
    found = f"{c:.2f} ± {se:.1g} by the last bias" if last else f"{c:.2f} ± {se:.1g}"

    def near(value: float) -> bool:
        return abs(c / value - 1) < max(0.15, 2 * se / abs(value))

    if batch_size > 1 and near(batch_size):
        return f": summed over the batch of {batch_size}, not averaged ({found})?"
    known = {0.5: "half the loss", 2.0: "twice the loss", -1.0: "a step, with the sign turned round"}
    return next(
        (f": {words} ({found})?" for value, words in known.items() if near(value)),
        ": another loss, or another scale?",
    )


def _of_misfit(fit: Fit, guess: bool = True) -> str:
    if fit.chi2_per_entry is None:
        away = (
            "impossible"
            if fit.chi2_sd is None or math.isinf(fit.chi2_sd)
            else f"{fit.chi2_sd:+.0f} sd from what it expects"
        )
        return f"the channel does not explain the gradient at this image: {away}"
    where = max(fit.layers, key=lambda n: abs(fit.layers[n]), default="")
    at = f", most in {where} ({fit.layers[where]:+.0f} sd)" if where else ""
    what = "other weights, another loss, a larger sigma" if fit.chi2_per_entry > 1 else "a smaller sigma"
    return (f"the model does not explain the gradient: chi² is {fit.chi2_per_entry:.3g} an entry, "
            f"{fit.chi2_sd:+.1f} sd from what it expects{at}{f': {what}?' if guess else ''}")  # fmt: skip
