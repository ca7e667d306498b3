"""Several beliefs about the data at once, averaged by how well each of them explains the gradient.

    p(x | g) = Σ_k p(k | g) p(x | g, k),     p(k | g) ∝ p(k) p(g | k),     p(k) the same for every prior k

The evidence p(g | k) comes from the inference under each prior (`pplleak.posterior.information`). A draw of the average
is a draw of k, and one of the posterior under k.

Source: Hoeting, Madigan, Raftery & Volinsky 1999, Bayesian Model Averaging, equations 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pplleak.errors import BadInput
from pplleak.posterior import Posterior
from pplleak.posterior.information import LN2, Estimate
from pplleak.priors import check
from pplleak.settings import Named

HEARD = 0.01  # weight from which on a prior's doubts are the average's
VAGUE = 0.5  # nats: an evidence that is known less exactly than that may give a prior another weight


@dataclass(frozen=True, eq=False)
class Belief:
    """A prior, the posterior under it, and log p(g) under it in nats."""

    prior: Named
    posterior: Posterior
    evidence: Estimate


def weights(evidences: Sequence[float]) -> np.ndarray:
    """p(k | g) ∝ p(g | k), (k,), from log p(g | k)."""
    log = np.asarray(evidences, dtype=np.float64)
    w = np.exp(log - log.max())
    return np.asarray(w / w.sum())


def attacked(priors: Sequence[Named], attack: Callable[[Named], tuple[Posterior, Estimate | None]]) -> list[Belief]:
    """The posterior under each prior, and its evidence.

    Raises:
        BadInput: a prior is named twice, there is none such, or the inference gives no evidence.
    """
    if len(set(map(str, priors))) < len(priors):
        raise BadInput(f"a prior is named twice in {', '.join(map(str, priors))}: each counts once")
    for prior in priors:
        check(prior)
    beliefs = []
    for prior in priors:
        posterior, evidence = attack(prior)
        if posterior.interrupted:
            raise KeyboardInterrupt
        if evidence is None:
            raise BadInput("priors are weighed by the evidence p(g), and this inference gives none: take hmc, smc, "
                           "laplace or svi")  # fmt: skip
        beliefs.append(Belief(prior, posterior, evidence))
    return beliefs


def average(beliefs: Sequence[Belief], seed: int = 0) -> Posterior:
    """The posterior under all of them.

    The mode, and what was examined of the fit, are those of the prior with the largest weight; `priors` in the
    attributes has the log-evidence (nats), its standard error and the weight of each. Doubts are those of every prior
    with a weight of at least HEARD.

    Raises:
        BadInput: the posteriors have different numbers of draws.
    """
    if len({(b.posterior.kind, b.posterior.x.shape[:2]) for b in beliefs}) > 1:
        raise BadInput("priors are averaged draw by draw, and their posteriors have different numbers of draws")
    p = weights([b.evidence.value for b in beliefs])
    best = beliefs[int(p.argmax())]
    total = best.evidence.value - math.log(float(p.max())) - math.log(len(beliefs))
    k = np.random.default_rng(seed).choice(len(beliefs), size=best.posterior.x.shape[:2], p=p)

    def picked(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.take_along_axis(np.stack(parts), k.reshape(1, *k.shape, *(1,) * (parts[0].ndim - 2)), 0)[0]

    each = [b.posterior for b in beliefs]
    latents = set.intersection(*(set(e.latents) for e in each))
    ratios = [e.log_weights for e in each]
    ratio = None
    if all(r is not None for r in ratios):  # p(x | g, k) / q_k(x): an evidence is no part of it
        parts = [(r - b.evidence.value).reshape(k.shape) for r, b in zip(ratios, beliefs, strict=True) if r is not None]
        ratio = picked(parts).reshape(-1)
    x = picked([e.x for e in each])
    attrs = best.posterior.attrs
    return best.posterior.with_(
        x=x, y=picked([e.y for e in each]), latents={n: picked([e.latents[n] for e in each]) for n in sorted(latents)},
        stats={}, curves={}, log_weights=ratio, reasons=tuple(_doubts(beliefs, p)),
        attrs={
            **attrs, "log_evidence": total, "log_evidence_se": None,
            **({} if attrs.get("bits") is None else {"bits": attrs["bits"] + (best.evidence.value - total) / LN2}),
            "beliefs": {**(attrs.get("beliefs") or {}), "prior": ",".join(str(b.prior) for b in beliefs)},
            "fit": _spread(attrs.get("fit"), float(x.std((0, 1)).mean() / max(best.posterior.sd.mean(), 1e-12))),
            "seconds": sum(float(e.attrs.get("seconds") or 0.0) for e in each),
            "priors": [
                {"prior": str(b.prior), "log_evidence": b.evidence.value, "se": b.evidence.se, "weight": float(w)}
                for b, w in zip(beliefs, p, strict=True)
            ],
        },
    )  # fmt: skip


def _spread(examined: dict[str, object] | None, wider: float) -> dict[str, object] | None:
    """What was examined of the fit, with the uncertainty that is left as that of the average."""
    ratio = (examined or {}).get("sd_ratio")
    return examined if examined is None or not isinstance(ratio, float) else {**examined, "sd_ratio": ratio * wider}


def _doubts(beliefs: Sequence[Belief], p: np.ndarray) -> list[str]:
    best, said = beliefs[int(p.argmax())], []
    for belief, weight in zip(beliefs, p, strict=True):
        if weight >= HEARD:
            said += [f"under {belief.prior}: {doubt}" for doubt in belief.posterior.doubts]
        error = math.hypot(belief.evidence.se or 0.0, best.evidence.se or 0.0)
        behind = best.evidence.value - belief.evidence.value
        if belief is not best and error > VAGUE and behind < 3 * error:
            said.append(f"the evidence of {belief.prior} is {behind:.1f} ± {error:.1f} nats behind that of "
                        f"{best.prior}: its weight may be another")  # fmt: skip
    return said
