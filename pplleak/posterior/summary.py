"""A posterior in numbers and in words: what `summary.json` holds, and whether to believe it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from pplleak.posterior import cells, metrics, tokens
from pplleak.posterior.diagnostics import CHAINS

Posterior = Any  # a `pplleak.posterior.Posterior`, whose own file asks this one for its verdict

MUCH, LITTLE = 0.5, 0.8  # shares of the prior's sd: below the first the image is given away, above the second it is not


def summarise(posterior: Posterior) -> dict[str, Any]:
    """The numbers of an attack; None where they need a truth or a spread that is not there.

    psnr_map, psnr_mean (dB) and ssim_map, ssim_mean: of the MAP and of the posterior mean, averaged over the batch,
    each matched to the truth by assignment. sd_mean: posterior sd averaged over pixels. coverage_90: fraction of
    pixels whose truth lies in its 90 % interval. bits, bits_se: the information gained about the truth
    (`pplleak.posterior.information`), where the inference knows its evidence. rhat_max, ess_min, khat, divergences:
    `Posterior`.
    ess_tail, bfmi, acceptance, elbo_gain, elbo_error, restarts_nats, restarts_rms: `diagnostics.Health`. seconds.
    trusted: the model fits, the inference converged and the gradient says something; None where one is not known (a
    point estimate has no uncertainty). fits, chi2_per_entry, chi2_sd, scale, scale_se, prior_stretch, outside,
    signal_to_noise, prior_sd, sd_ratio, cause, cause_nats: `pplleak.posterior.fit.Fit`. converged. doubts: why not,
    those of the fit (doubts_of_fit) first. examples: scores of each; worst_psnr: of the worst.
    Of records (`pplleak.posterior.cells`) there are, in place of PSNR, SSIM, sd and coverage of pixels: cell_accuracy,
    exact_match, guess_accuracy, guess_exact, cell_probability, calibration_error, chance_exact, expected_right, cells.
    Of sentences (`pplleak.posterior.tokens`): token_accuracy, exact_match, rouge1, rouge2, rougel, token_probability,
    calibration_error, tokens_named, tokens_named_exactly, sentences.
    priors: where several were averaged, the log-evidence of each in nats, its standard error and its weight.
    approximation: what stands in for the posterior, or None. chosen: why this inference, where it was not named.
    searches: 2 where the first ended beside what the model explains, and another one found it.
    recovered_labels: the labels that were recovered, by which rule, how sure. sigma: of the noise as it was told, or
    its posterior median where it was inferred, with its 90 % interval (sigma_interval). path: how the client's update
    was computed (`Client.path`).
    """
    columns = cells.columns_of(posterior)
    if columns is not None:
        return {**cells.scores(posterior, columns), **_of_the_attack(posterior)}
    vocabulary = tokens.vocabulary_of(posterior)
    if vocabulary is not None:
        return {**tokens.scores(posterior, vocabulary), **_of_the_attack(posterior)}
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
    scored = examples(posterior)
    return {
        **scores,
        **_of_the_attack(posterior),
        "examples": scored,
        "worst_psnr": min((r["psnr_map"] for r in scored if r["psnr_map"] is not None), default=None),
    }


def _of_the_attack(posterior: Posterior) -> dict[str, Any]:
    """What is said of images and of records alike."""
    return {
        "bits": posterior.attrs.get("bits"),
        "bits_se": posterior.attrs.get("bits_se"),
        "rhat_max": None if posterior.rhat_max == math.inf else posterior.rhat_max,  # JSON knows no infinity
        "ess_min": posterior.ess_min,
        "khat": posterior.khat,
        "divergences": posterior.divergences,
        **dataclasses.asdict(posterior.health),
        "seconds": posterior.attrs.get("seconds"),
        "nats_left": posterior.attrs.get("nats_left"),
        **_fit(posterior, posterior.attrs.get("fit") or {}),
        "kind": posterior.kind,
        "approximation": posterior.approximation or None,
        "model": posterior.attrs.get("model"),
        "inference": posterior.attrs.get("inference"),
        "settings": posterior.attrs.get("settings"),
        "chosen": posterior.attrs.get("chosen"),
        "searches": posterior.attrs.get("searches", 1),
        "priors": posterior.attrs.get("priors"),
        "recovered_labels": posterior.attrs.get("recovered_labels"),
        **{
            n: posterior.attrs.get(n)
            for n in ("sigma", "sigma_interval", "network", "path", "seed", "protection", "versions")
        },
        "data": posterior.attrs.get("data") or posterior.attrs.get("observed"),
    }


def examples(posterior: Posterior) -> list[dict[str, float | None]]:
    """PSNR (dB) and SSIM of every example's MAP and mean, each matched to the truth; empty without a truth."""
    if posterior.truth is None:
        return []
    rows: list[dict[str, float | None]] = [{} for _ in posterior.truth]
    for name, x in (("map", posterior.mode), ("mean", posterior.mean)):
        x = x[metrics.match(x, posterior.truth)]
        for key, values in (("psnr", metrics.psnr(x, posterior.truth)), ("ssim", metrics.ssim(x, posterior.truth))):
            for row, value in zip(rows, np.atleast_1d(values), strict=False):
                row[f"{key}_{name}"] = float(value) if math.isfinite(value) else None
    return rows


def _fit(posterior: Posterior, examined: dict[str, Any]) -> dict[str, Any]:
    """The three answers, fit first, and what they rest on."""
    doubts = [*examined.get("doubts", ()), *posterior.doubts]
    fits, ratio = examined.get("fits"), examined.get("sd_ratio")
    says = None if ratio is None else ratio < LITTLE
    answers = (fits, posterior.converged, says)
    trusted = False if False in answers else None if None in answers else True
    return {
        "trusted": trusted,
        "fits": fits,
        "converged": posterior.converged,
        **{n: examined.get(n) for n in ("chi2_per_entry", "chi2_sd", "scale", "scale_se", "prior_stretch", "outside",
                                        "signal_to_noise", "prior_sd", "sd_ratio", "cause", "cause_nats")},
        "doubts": doubts,
        "doubts_of_fit": list(examined.get("doubts", ())),
    }  # fmt: skip


def verdict(summary: dict[str, Any]) -> str:
    """May this result be believed? Whether the model explains the gradient, whether the inference converged, and
    whether the gradient says anything, in this order; the sentence that matters comes first."""
    if summary["approximation"]:
        return f"approximate, by {summary['approximation']}: {verdict({**summary, 'approximation': None})}"
    thing = "record" if "cell_accuracy" in summary else "sentence" if "token_accuracy" in summary else "image"
    wrong = summary["doubts_of_fit"]
    ended = [d for d in summary["doubts"] if d not in wrong]
    if wrong or not summary["converged"]:
        stopped = [] if summary["converged"] else ["did not converge: " + "; ".join(ended)]
        return "Not to be believed: " + "; ".join([*wrong, *stopped])
    if summary["kind"] == "point":
        return f"A point estimate, without uncertainty; {_fitting(summary)}"
    how = f"{_fitting(summary)}; {_converging(summary)}"
    ratio = summary["sd_ratio"]
    if ratio is None:
        return f"{_converging(summary)}; what the prior alone leaves open is not known; {_fitting(summary)}"
    left = f"{ratio:.0%} of the prior's uncertainty is left"
    if ratio >= LITTLE:
        return f"This gradient says little: what you see is the prior's guess ({left}); {how}"
    if ratio >= MUCH:
        return f"This gradient narrows the {thing} down ({left}); {how}"
    return f"This gradient gives the {thing} away ({left}); {how}"


def colour(summary: dict[str, Any]) -> str:
    """good: all three answers are yes; open: a point estimate, or an answer that is not known; bad: one is no."""
    return {True: "good", None: "open", False: "bad"}[summary["trusted"]]


def _fitting(summary: dict[str, Any]) -> str:
    if summary["fits"] is None:
        return "whether the model explains the gradient was not checked"
    if summary["chi2_per_entry"] is None:
        return f"the model explains the gradient ({summary['chi2_sd']:+.1f} sd)"
    return (
        f"the model explains the gradient (chi² {summary['chi2_per_entry']:.3g} an entry, {summary['chi2_sd']:+.1f} sd)"
    )


def _converging(summary: dict[str, Any]) -> str:
    if summary["kind"] in CHAINS:
        agree = f"chains agree (R-hat {summary['rhat_max']:.3f}, ESS {summary['ess_min']:.0f})"
        if summary["khat"] is not None:  # chains on a stand-in, weighed against the client's own network
            return f"an approximation whose {agree}, close to the posterior (k-hat {summary['khat']:.2f})"
        return f"converged: {agree}"
    return f"an approximation, close to the posterior (k-hat {summary['khat']:.2f})"
