"""The paper's noise defences (its Table 2), attacked by its baselines and by the posterior.

    uv run benchmarks/paper/noise_defences.py --data-root ROOT --quick
    uv run benchmarks/paper/noise_defences.py --data-root ROOT --datasets mnist --steps 0 --images 100

One image's gradient of the paper's CNN (ReLU), at the start and after SGD, its label known; noise of standard
deviation 0.1 (Gaussian) or scale 0.1 (Laplace) on every entry, alone or after random pruning of half the entries, by a
mask that every adversary knows or none does. Every image has noise (and a mask) of its own. The Bayes rows share one
learnt prior, a VAE; the baselines have total variation. Each attack's settings are tuned in each
cell, by the same number of trials on the same images, which are not scored; the posterior mean has none to tune.
`no_gradient`, the mean public image of the label, is what the server knows before.

Writes noise_defences_images.csv (a row an image and attack), noise_defences_tuning.csv, noise_defences.csv, .md
and .png.
`seconds` are CPU seconds of one thread.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import attacks
import network
import pictures
import study
import torch
from attacks import Effort
from pruning import pruning

from pplleak import markdown, runs
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.settings import Named

CELL = ("dataset", "network", "step", "defence", "mask_known")
KEY = (*CELL, "attack", "index")
IMAGE = (*KEY, "psnr", "ssim", "seconds", "delta", "coverage_90", "psnr_claimed", "rhat_max", "khat", "acceptance")
TUNED = (*CELL, "attack", "index", "trial", "psnr", "seconds", *study.SETTINGS)
SUMMARY = (*CELL, "attack", "images", "psnr_mean", "psnr_se", "delta_vs_best_baseline", "delta_se", "best_baseline",
           "delta_vs_map", "delta_vs_map_se", "delta_vs_no_gradient", "delta_vs_no_gradient_se", "ssim_mean",
           "coverage_90", "psnr_claimed", "rhat_max", "khat", "acceptance", "seconds")  # fmt: skip
ORDER = (*attacks.BASELINES, *attacks.BAYES, "no_gradient")
DELTAS = (  # paired differences to the best baseline, to the MAP under the same model, to the label's mean image
    ("delta_vs_best_baseline", "delta_se"),
    ("delta_vs_map", "delta_vs_map_se"),
    ("delta_vs_no_gradient", "delta_vs_no_gradient_se"),
)
PRIOR = "vae"  # of the Bayes rows
NOISE = {"gaussian": 0.1, "laplace": 0.1 * math.sqrt(2)}  # its standard deviation
RATE = 0.5  # the share of entries that are pruned
DEFENCES = {  # the channel
    **{noise: Named(noise, {"sigma": sigma}) for noise, sigma in NOISE.items()},
    **{f"pruned_{n}": Named("pruned", {"rate": RATE, "noise": n, "sigma": s}) for n, s in NOISE.items()},
}
SPACES = {  # the smoothness is weighed beside distances of another size in each baseline
    "l2": {"tv": (1e-2, 0.3), "lr": (0.3, 3.0)},
    "l1": {"tv": (3e-2, 1.0), "lr": (0.3, 3.0)},
    "cosine": {"tv": (3e-5, 1e-3), "lr": (0.3, 3.0)},
    "map": {"lr": (0.03, 0.3)},
    "ball": {"delta": (0.05, 0.5)},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run.

    images: that are scored. tuning: further images, that settings are tuned on. trials: of each attack.
    quick: ten images, the cells without pruning at step 0, few trials; written to files of their own.
    """

    data_root: Path | None = None
    datasets: tuple[str, ...] = ("mnist",)
    network: str = "convnet"
    steps: tuple[int, ...] = (0, 10, 100, 1000)
    defences: tuple[str, ...] = tuple(DEFENCES)
    masks: tuple[Literal["known", "unknown"], ...] = ("known", "unknown")
    images: int = 100
    tuning: int = 3
    trials: int = 6
    quick: bool = False
    workers: int = 2
    effort: Effort = dataclasses.field(default_factory=Effort)
    out: Path = study.RESULTS

    @property
    def name(self) -> str:
        """Of the files that are written: a quick run never mixes with a full one."""
        return "noise_defences" + "_quick" * self.quick


def cells(args: Settings) -> list[study.Job]:
    """Every cell, the cheap ones first; a mask is known or not where there is one."""
    made = []
    for defence in args.defences:
        masks = args.masks if DEFENCES[defence].name == "pruned" else ("",)
        made += [(d, args.network, s, defence, m) for d in args.datasets for s in args.steps for m in masks]
    return made


def observed_of(cell: study.Job, index: int, root: Path | None) -> Observation:
    """What the image's client shares in a cell; noise and mask are drawn by the image's index.

    A mask that is known is the client's (`pruning.py`), so that every attack knows it: the channel is the noise alone.
    """
    dataset, name, step, defence, mask = cell
    channel = DEFENCES[defence]
    if mask == "known":
        channel = Named("masked", {**channel.settings, "mask_seed": index})
    checkpoint = network.checkpoint(dataset, root, step) if step else None
    made = observe(
        Scenario(
            dataset, root, index, network=Named(name), checkpoint=checkpoint, noise_seed=index,
            protection=Protection(channel=channel),
        )
    )  # fmt: skip
    if mask != "known":
        return made
    noise = Protection(channel=DEFENCES[channel.settings["noise"]])
    return dataclasses.replace(made, client=pruning(made.client, RATE, index), protection=noise)


def tune(job: study.Job, args: Settings) -> list[study.Row]:
    """Every trial of one attack on one image that is not scored."""
    *cell, name, index = job
    observed = observed_of(tuple(cell), index, args.data_root)
    tried = study.trials(SPACES[name], args.trials)
    if name == "ball":
        deltas = [t["delta"] for t in tried]
        found, _ = attacks.bayes(observed, PRIOR, 0.1, deltas, args.effort, index)
        rows = [row for row in found if row["attack"] == "ball"]
    elif name == "map":
        density = attacks.density_of(observed, PRIOR)
        rows = []
        for setting in tried:
            mode = attacks.climb(density, setting["lr"], args.effort, index)[0]
            rows.append(attacks.score(density.images(mode[None])[0][0].numpy(), observed))
    else:
        rows = [attacks.baseline(name, observed, setting, args.effort, index) for setting in tried]
    return [
        {**setting, "trial": k, "psnr": row["psnr"], "seconds": row.get("seconds")}
        for k, (setting, row) in enumerate(zip(tried, rows, strict=True))
    ]


def attacked(job: study.Job, args: Settings, tuned: Mapping[tuple[str, ...], Mapping[str, float]]) -> list[study.Row]:
    """One image in one cell, by a baseline or by all that the posterior gives; `attack` is in the rows."""
    *cell, name, index = job
    observed = observed_of(tuple(cell), index, args.data_root)

    chosen = {attack: tuned[(*map(str, cell), attack)] for attack in SPACES}
    if name != "mean":
        return [attacks.baseline(name, observed, chosen[name], args.effort, index)]
    rows, _ = attacks.bayes(observed, PRIOR, chosen["map"]["lr"], [chosen["ball"]["delta"]], args.effort, index)
    return [*rows, attacks.no_gradient(observed, args.data_root)]


def summarise(rows: Sequence[Mapping[str, str]]) -> list[study.Row]:
    """A row for each cell and attack; differences are paired image by image."""
    made: list[study.Row] = []
    for cell, every in study.grouped(rows, CELL).items():
        mine = {attack: found for (attack,), found in study.grouped(every, ("attack",)).items()}
        whole = set.intersection(*({r["index"] for r in found} for found in mine.values()))
        if not whole:  # an image that not every attack has seen yet is left out
            continue
        mine = {attack: [r for r in mine[attack] if r["index"] in whole] for attack in ORDER if attack in mine}
        psnr = {attack: study.by_image(found) for attack, found in mine.items()}
        baselines = [a for a in attacks.BASELINES if a in psnr]
        best = max(baselines, key=lambda a: study.mean_se(psnr[a].values())[0], default=None)
        for attack, found in mine.items():
            mean, se = study.mean_se(psnr[attack].values())
            row = {**dict(zip(CELL, cell, strict=True)), "attack": attack, "images": len(found), "psnr_mean": mean}
            row |= {"psnr_se": se, "best_baseline": best}
            for (column, error), other in zip(DELTAS, (best, "map", "no_gradient"), strict=True):
                if other == attack or (other == "map" and attack not in attacks.BAYES):
                    continue
                gap = study.paired(psnr[attack], psnr[other]) if other in psnr else None
                if gap:
                    row[column], row[error] = gap
            row["ssim_mean"] = study.mean_se(study.by_image(found, "ssim").values())[0]
            row |= study.means(found, ("coverage_90", "psnr_claimed", "rhat_max", "khat", "acceptance", "seconds"))
            made.append(row)
    return made


def report(args: Settings) -> None:
    """The summary and its table, from the rows that are there."""
    rows = summarise(study.read(args.out / f"{args.name}_images.csv"))
    if not rows:
        return
    study.write(args.out / f"{args.name}.csv", SUMMARY, rows)
    head = ["data", "SGD steps", "defence", "mask", "attack", "images", "PSNR, dB", "− best baseline", "− own MAP",
            "− no gradient"]  # fmt: skip
    lines = [
        [r["dataset"], str(r["step"]), r["defence"], r["mask_known"] or "–", r["attack"], str(r["images"]),
         study.said(r["psnr_mean"], r["psnr_se"]), *(
             study.said(r[c], r[s], sign=True) if c in r else "–"
             for c, s in DELTAS
         )]
        for r in rows
    ]  # fmt: skip
    runs.text(args.out / f"{args.name}.md", markdown.table([head, *lines]) + "\n")
    named = {"": "", "known": ", mask known", "unknown": ", mask unknown"}
    drawn = [
        {**r, "panel": f"{r['dataset']}, {r['step']} SGD steps",
         "line": f"{r['defence'].replace('_', ' + ')}{named[r['mask_known']]}"}
        for r in rows
    ]  # fmt: skip
    counts = {panel: {r["images"] for r in mine} for (panel,), mine in study.grouped(drawn, ("panel",)).items()}
    titles = {p: f"{p}, {' to '.join(str(n) for n in sorted({min(c), max(c)}))} images" for p, c in counts.items()}
    figure = pictures.dots(drawn, "attack", "panel", "line", titles)
    runs.figure(args.out / f"{args.name}.png", figure, dpi=110)


def main(args: Settings) -> bool:
    torch.set_num_threads(1)
    if args.quick:
        args = dataclasses.replace(args, steps=(0,), defences=("gaussian", "laplace"), images=10, tuning=1, trials=3)
    study.require_known("defence", args.defences, DEFENCES)
    study.settle(args, ("tuning", "trials", "effort"), spaces=SPACES)
    for cell in cells(args):
        network.checkpoint(cell[0], args.data_root, cell[2])
        scored, held = study.images(cell[0], args.data_root, args.images, args.tuning)
        jobs = [(*cell, name, index) for name in SPACES for index in held]
        table, images = (args.out / f"{args.name}_{what}.csv" for what in ("tuning", "images"))
        if not study.run("tuning", jobs, functools.partial(tune, args=args), table, TUNED, (*CELL, "attack", "index"),
                         args.workers):  # fmt: skip
            return False
        tuned = study.best(study.read(table), (*CELL, "attack"))
        jobs = [(*cell, name, index) for index in scored for name in (*attacks.BASELINES, "mean")]
        work = functools.partial(attacked, args=args, tuned=tuned)
        finished = study.run("/".join(map(str, cell[2:])), jobs, work, images, IMAGE, KEY, args.workers)
        report(args)
        if not finished:
            return False
    return True


if __name__ == "__main__":
    study.command(main, Settings, __doc__)
