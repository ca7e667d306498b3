"""Gaussian noise on the paper's ReLU network (its Table 2), attacked by a posterior with a stronger prior.

    uv run benchmarks/paper/exact.py --data-root ROOT [--steps 0 10 100] [--images 20] [--minutes 4]
    uv run benchmarks/paper/exact.py --data-root ROOT --steps 1000 --sampler auto
    uv run benchmarks/paper/exact.py --data-root ROOT --dataset cifar10 --sampler softened --prior gaussian

The images, networks and noise are those of `noise_defences.py`, whose rows are read for the baselines, the softened
posterior under the VAE, and `no_gradient`: every difference is paired image by image. Here `billiard` draws from the
posterior of the ReLU network itself, with nothing softened, under the prior of the label's public images
(`class_gaussian`), for so many minutes an image, the search and the warm-up included; `map` is the mode that its chains
began at, under the same prior. `elliptical` draws from the same posterior without slopes: the one that converges where
the gradient says little beside the label, as that of most images after 1000 steps; its `map` is the mode above its
chains. `auto` takes for each image the one of the two that a trial speaks for (`drawn_by`). `softened` runs the chains
of `attacks.py` instead, longer ones than there: not exact, and k-hat says how far from it, for images of so many pixels
that a curvature in all of them costs more than the draws.

An image counts as converged where R-hat of its worst pixel is below 1.01, and as usable below 1.1: the nested R-hat
where `superchains` are not 0, whose chains are advanced in a larger batch and so are cheaper by the draw. One that is
not converged is drawn again where it may now take more than twice as long as it did. Writes
exact_images.csv (a row an image), exact.csv and exact.md. `seconds` are wall seconds of one thread.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import attacks
import network
import noise_defences
import numpy as np
import study
import torch
from attacks import Effort
from pictures import LOOKS

from pplleak import markdown, runs
from pplleak.posterior import metrics
from pplleak.studies.attack.attack import attack, choose
from pplleak.studies.audit.clock import Clock, OutOfTime

KEY = ("dataset", "network", "step", "sigma", "sampler", "prior", "index")
IMAGE = (*KEY, "psnr", "psnr_map", "psnr_label", "ssim", "coverage_90", "psnr_claimed", "rhat_max", "ess_min", "khat",
         "drawn_by", "chains", "superchains", "draws", "acceptance", "seconds")  # fmt: skip
CELL = KEY[:-1]
AGAINST = {"map": "psnr_map", "no_gradient": "psnr_label"}  # in this table; the baselines are in the other one
SUMMARY = (*CELL, "images", "psnr_mean", "psnr_se", "best_baseline", "delta_vs_best_baseline",
           "delta_vs_best_baseline_se", "delta_vs_softened", "delta_vs_softened_se", "delta_vs_map", "delta_vs_map_se",
           "delta_vs_no_gradient", "delta_vs_no_gradient_se", "coverage_90", "psnr_claimed", "rhat_median",
           "rhat_worst", "ess_min", "khat", "converged", "usable", "seconds")  # fmt: skip
SHOWN = ("delta_vs_best_baseline", "delta_vs_softened", "delta_vs_map", "delta_vs_no_gradient")
CONVERGED, USABLE, FROZEN = 1.01, 1.1, 100.0
SIGMA = noise_defences.NOISE["gaussian"]  # of the cells that this table is paired with
LONGER = Effort(draws=60)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run.

    minutes: for an image. chains, superchains, settle, warmup, starts: of billiard, one thread, all chains in one
    batch; elliptical has one chain where billiard has a superchain. images: the first so many of `noise_defences`.
    """

    data_root: Path | None = None
    dataset: str = "mnist"
    steps: tuple[int, ...] = (0,)
    sampler: Literal["auto", "billiard", "elliptical", "softened"] = "billiard"
    prior: str = "class_gaussian"
    images: int = 20
    minutes: float = 4.0
    chains: int = 16
    superchains: int = 4
    settle: int = 10
    warmup: int = 60
    starts: int = 4
    beta: float = 200.0
    """Of billiard's gates: on this network the best, or nearly, and one thing less to find in a short warm-up."""
    softened: Effort = LONGER
    workers: int = 2
    out: Path = study.RESULTS

    name = "exact"


def attacked(job: study.Job, args: Settings) -> list[study.Row]:
    """One image: the exact posterior's mean, and what is beside it."""
    warnings.simplefilter("ignore")
    dataset, name, step, _, sampler, _, index = job
    observed = noise_defences.observed_of((dataset, name, step, "gaussian", ""), index, args.data_root)
    begun, truth, beliefs = time.monotonic(), observed.truth.numpy(), {"prior": args.prior}
    drawn_by = choose(observed, beliefs=beliefs)[0] if sampler == "auto" else sampler
    if sampler == "softened":
        found = attacks.bayes(observed, args.prior, 0.1, [], args.softened, index)[1]
    else:
        own = {
            "billiard": {"chains": args.chains, "superchains": args.superchains, "settle": args.settle,
                         "warmup": args.warmup, "starts": args.starts, "beta": args.beta},
            "elliptical": {"chains": args.superchains or args.chains, "warmup": args.warmup},
        }[drawn_by]  # fmt: skip
        settings = {**own, "draws": 100_000, "processes": 1}
        clock = Clock(60 * args.minutes + begun - time.monotonic())
        try:
            found = attack(observed, inference=drawn_by, beliefs=beliefs, settings=settings, seed=index,
                           progress=clock).with_(truth=truth)  # fmt: skip
        except OutOfTime:  # before the first draw: it may have longer the next time
            return []
    seconds = time.monotonic() - begun
    guess = attacks.no_gradient(observed, args.data_root)
    return [{
        **attacks.score(found.mean, observed), **attacks.honesty(found),
        "psnr_map": float(metrics.psnr(found.mode, truth)[0]), "psnr_label": guess["psnr"], "ess_min": found.ess_min,
        "drawn_by": drawn_by, "chains": found.x.shape[0], "superchains": found.attrs.get("superchains", 0),
        "draws": found.x.shape[1], "seconds": seconds,
    }]  # fmt: skip


def summarise(rows: Sequence[Mapping[str, str]], others: Sequence[Mapping[str, str]]) -> list[study.Row]:
    """A row for each cell; `others` are the rows of `noise_defences`, of which those of the same images are taken."""
    made: list[study.Row] = []
    for cell, mine in study.grouped(rows, CELL).items():
        psnr, best = _beside(mine, others)
        mean, error = study.mean_se(psnr["mean"].values())
        row = {**dict(zip(CELL, cell, strict=True)), "images": len(mine), "psnr_mean": mean, "psnr_se": error}
        if best:
            row["best_baseline"] = best
        for name in ("best_baseline", "softened", *AGAINST):
            if name in psnr:
                gap = study.paired(psnr["mean"], psnr[name])
                assert gap is not None
                row[f"delta_vs_{name}"], row[f"delta_vs_{name}_se"] = gap
        rhat = np.array(list(map(_rhat, mine)))
        row |= study.means(mine, ("coverage_90", "psnr_claimed", "ess_min", "khat", "seconds"))
        row |= {"rhat_median": float(np.median(rhat)), "rhat_worst": float(rhat.max()),
                "converged": len(converged(mine)), "usable": int((rhat < USABLE).sum())}  # fmt: skip
        made.append(row)
    return made


def _beside(
    rows: Sequence[Mapping[str, str]], others: Sequence[Mapping[str, str]]
) -> tuple[dict[str, dict[str, float]], str]:
    """PSNR by image of the mean and of all that it is compared with; and which baseline is the best, "" for none.

    A baseline counts that has seen every image of `rows`; `others` are those of `noise_defences`.
    """
    psnr = {"mean": study.by_image(rows)} | {name: study.by_image(rows, column) for name, column in AGAINST.items()}
    baselines = {}
    for (name,), theirs in study.grouped(_same(others, rows[0]), ("attack",)).items():
        found = {i: v for i, v in study.by_image(theirs).items() if i in psnr["mean"]}
        if name in attacks.BASELINES and len(found) == len(psnr["mean"]):
            baselines[name] = found
        elif name == "mean" and found:
            psnr["softened"] = found
    best = max(baselines, key=lambda n: study.mean_se(baselines[n].values())[0], default="")
    return (psnr | {"best_baseline": baselines[best]} if best else psnr), best


def _same(others: Sequence[Mapping[str, str]], about: Mapping[str, str]) -> list[Mapping[str, str]]:
    """Rows behind the same Gaussian noise on the same network."""
    if float(about["sigma"]) != SIGMA:
        return []
    asked = {**{n: about[n] for n in ("dataset", "network", "step")}, "defence": "gaussian", "mask_known": ""}
    return [r for r in others if all(r[n] == v for n, v in asked.items())]


def table(rows: Sequence[study.Row]) -> str:
    """What the exact posterior is worth, and how far its chains came."""
    head = ["data", "SGD steps", "sampler, prior", "images", "posterior mean, dB", "− best baseline", "− softened, VAE",
            "− own MAP", "− no gradient", "in 90 %", "R-hat, median (worst)", "below 1.1", "below 1.01"]  # fmt: skip
    lines = []
    for r in rows:
        gaps = [study.said(r[c], r[f"{c}_se"], sign=True) if c in r else "–" for c in SHOWN]
        gaps[0] += f" ({r['best_baseline']})" if "best_baseline" in r else ""
        lines.append([
            r["dataset"], str(r["step"]), f"{r['sampler']}, `{r['prior']}`", str(r["images"]),
            study.said(r["psnr_mean"], r["psnr_se"]), *gaps, f"{r['coverage_90']:.1%}",
            f"{_said(r['rhat_median'])} ({_said(r['rhat_worst'])})", str(r["usable"]), str(r["converged"]),
        ])  # fmt: skip
    return markdown.table([head, *lines]) + "\n"


def facts(rows: Sequence[Mapping[str, str]], others: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What a page says of one cell, whose rows these are, image by image; `others` as for `summarise`."""
    psnr, best = _beside(rows, others)
    psnr["claimed"] = study.by_image(rows, "psnr_claimed")
    rhat, minutes = np.array(list(map(_rhat, rows))), [float(r["seconds"]) / 60 for r in rows]
    ess = np.median([float(r["ess_min"] or 1) for r in rows])
    wins, settled = [v > psnr["map"][i] for i, v in psnr["mean"].items()], {r["index"] for r in converged(rows)}

    def over(name: str, which: Container[str] = psnr["mean"]) -> str:
        gap = study.paired({i: v for i, v in psnr["mean"].items() if i in which}, psnr[name])
        return "–" if gap is None else study.said(*gap, sign=True)

    named = {"best": "best_baseline", "map": "map", "known": "no_gradient", "soft": "softened"}
    said = {n: study.said(*study.mean_se(psnr[of].values())) for n, of in {"mean": "mean", **named}.items()}
    return {
        **said, **{f"over_{n}": over(of) for n, of in named.items()}, "honest": over("claimed"),
        **{f"alone_{n}": over(of, settled) for n, of in named.items()},
        "best_name": LOOKS[best][0],
        "images": str(len(rows)), "wins": f"{sum(wins)} of {len(wins)}",
        "coverage": f"{study.means(rows, ['coverage_90'])['coverage_90']:.1%}",
        "rhats": f"{_said(rhat.min())} to {_said(rhat.max())}", "rhat_median": _said(np.median(rhat)),
        "usable": f"{(rhat < USABLE).sum()} of {len(rhat)}", "converged": f"{len(settled)}",
        "ess": f"{ess:.0f}", "few": f"{10 * np.log10(1 + 1 / ess):.2f} dB",
        "budget": f"{min(minutes):.0f} to {max(minutes):.0f} minutes an image",
    }  # fmt: skip


def converged(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Those whose worst R-hat is known, and below CONVERGED."""
    return [r for r in rows if _rhat(r) < CONVERGED]


def _rhat(row: Mapping[str, str]) -> float:
    """R-hat of the worst pixel; infinite where too few draws have none."""
    return float(row["rhat_max"] or "inf")


def _said(rhat: float) -> str:
    """An R-hat; of chains that do not move it is as large as rounding has it."""
    return f"{rhat:.3f}" if rhat < FROZEN else f"> {FROZEN:g}"


def cut_short(row: Mapping[str, str], minutes: float) -> bool:
    """Whether chains that are ended by the clock did not converge, and so many minutes are over twice what they had."""
    return row["sampler"] != "softened" and not converged([row]) and 2 * float(row["seconds"]) < 60 * minutes


def report(args: Settings) -> None:
    others = study.read(args.out / f"{noise_defences.Settings().name}_images.csv")
    rows = summarise(study.read(args.out / f"{args.name}_images.csv"), others)
    if rows:
        rows.sort(key=lambda r: (r["dataset"] != "mnist", r["dataset"], int(r["step"])))
        study.write(args.out / f"{args.name}.csv", SUMMARY, rows)
        runs.text(args.out / f"{args.name}.md", table(rows))


def main(args: Settings) -> bool:
    torch.set_num_threads(1)
    for step in args.steps:
        network.checkpoint(args.dataset, args.data_root, step)
    scored, _ = study.images(args.dataset, args.data_root, args.images, noise_defences.Settings().tuning)
    jobs = [(args.dataset, network.NAME, step, f"{SIGMA:g}", args.sampler, args.prior, index)
            for step in args.steps for index in scored]  # fmt: skip
    whole = study.run("exact posterior", jobs, functools.partial(attacked, args=args),
                      args.out / f"{args.name}_images.csv", IMAGE, KEY, args.workers,
                      stale=functools.partial(cut_short, minutes=args.minutes))  # fmt: skip
    report(args)
    return whole


if __name__ == "__main__":
    study.command(main, Settings, __doc__)
