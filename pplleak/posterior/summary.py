"""A posterior in numbers and in one sentence: what `summary.json` holds, and whether to believe it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from pplleak.posterior import metrics
from pplleak.posterior.diagnostics import CHAINS

if TYPE_CHECKING:
    from pplleak.posterior.posterior import Posterior


def summarise(posterior: Posterior) -> dict[str, Any]:
    """The numbers of an attack; None where they need a truth or a spread that is not there.

    psnr_map, psnr_mean (dB) and ssim_map, ssim_mean: of the MAP and of the posterior mean, averaged over the batch,
    each matched to the truth by assignment. sd_mean: posterior sd averaged over pixels. coverage_90: fraction of
    pixels whose truth lies in its 90 % interval. bits, bits_se: the information gained about the truth
    (`pplleak.posterior.information`), where the inference knows its evidence. rhat_max, ess_min, khat, divergences:
    `Posterior`.
    ess_tail, bfmi, acceptance, elbo_gain, elbo_error, restarts_nats, restarts_rms: `diagnostics.Health`. seconds.
    converged, and doubts: why not. approximation: what stands in for the posterior, or None. chosen: why this
    inference, where it was not named. recovered_labels: the labels that were recovered, by which rule, how sure.
    """
    point = posterior.kind == "point"
    scores: dict[str, float | None] = dict.fromkeys(
        ("psnr_map", "psnr_mean", "ssim_map", "ssim_mean", "sd_mean", "coverage_90")
    )
    if not point:
        scores["sd_mean"] = float(posterior.sd.mean())
    if posterior.truth is not None:
        truth = posterior.truth
        for name, x in (("map", posterior.mode), ("mean", posterior.mean)):
            x = x[metrics.match(x, truth)]
            scores[f"psnr_{name}"] = float(metrics.psnr(x, truth).mean())
            similar = float(metrics.ssim(x, truth).mean())
            scores[f"ssim_{name}"] = None if math.isnan(similar) else similar
        if not point:
            order = metrics.match(posterior.mean, truth)
            scores["coverage_90"] = metrics.coverage(posterior.draws[:, order], truth)
    return {
        **scores,
        "bits": posterior.attrs.get("bits"),
        "bits_se": posterior.attrs.get("bits_se"),
        "rhat_max": None if posterior.rhat_max == math.inf else posterior.rhat_max,  # JSON knows no infinity
        "ess_min": posterior.ess_min,
        "khat": posterior.khat,
        "divergences": posterior.divergences,
        **dataclasses.asdict(posterior.health),
        "seconds": posterior.attrs.get("seconds"),
        "nats_left": posterior.attrs.get("nats_left"),
        "converged": posterior.converged,
        "doubts": list(posterior.doubts),
        "kind": posterior.kind,
        "approximation": posterior.approximation or None,
        "model": posterior.attrs.get("model"),
        "inference": posterior.attrs.get("inference"),
        "settings": posterior.attrs.get("settings"),
        "chosen": posterior.attrs.get("chosen"),
        "recovered_labels": posterior.attrs.get("recovered_labels"),
    }


def verdict(summary: dict[str, Any]) -> str:
    """One sentence: may this result be believed?"""
    if summary["approximation"]:
        return f"approximate, by {summary['approximation']}: {verdict({**summary, 'approximation': None})}"
    if not summary["converged"]:
        return "did not converge: " + "; ".join(summary["doubts"])
    if summary["kind"] in CHAINS:
        return f"converged: chains agree (R-hat {summary['rhat_max']:.3f}, ESS {summary['ess_min']:.0f})"
    if summary["kind"] == "approximation":
        return f"an approximation, close to the posterior (k-hat {summary['khat']:.2f})"
    return "a point estimate: one image, no uncertainty"
