"""The same gradients under weaker and stronger beliefs about images (the paper's Table 5, with a posterior).

    uv run benchmarks/paper/stronger_priors.py --data-root ROOT --quick
    uv run benchmarks/paper/stronger_priors.py --data-root ROOT --images 20

One image's gradient of the paper's CNN (ReLU) at the start, its label known, Gaussian noise of σ on every entry. Each
prior's MAP and posterior mean; `gaussian|y` and `mixture|y` are fitted to the public images of the known label alone.
The weight of `tv` is tuned on images that are not scored; the others learn all they believe from public images.
`no_gradient` is the mean public image of the label, which needs no gradient at all.

Writes stronger_priors_images.csv (a row an image, prior and decision), stronger_priors.csv, .md and .png. `seconds` are
CPU seconds of one thread; the fits of the priors, which are kept, are not in them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import attacks
import pictures
import study
import torch
from attacks import Effort

from pplleak import data, markdown, runs
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.settings import Named

PRIORS = {  # what the tables call a prior -> its name; p(x | y) is fitted to the images of its label
    "flat": "uniform",
    "tv": "tv",
    "gmrf": "gmrf",
    "gaussian": "gaussian",
    "mixture": "mixture",
    "vae": "vae",
    "flow": "flow",
    "gaussian|y": "gaussian",
    "mixture|y": "mixture",
}
CELL = ("dataset", "network", "sigma", "prior")
KEY = (*CELL, "decision", "index")
IMAGE = (*KEY, "psnr", "ssim", "seconds", "tv", "coverage_90", "psnr_claimed", "rhat_max", "khat", "acceptance")
TUNED = (*CELL, "index", "trial", "psnr", *study.SETTINGS)
SUMMARY = ("dataset", "network", "sigma", "prior", "decision", "images", "psnr_mean", "psnr_se", "delta_vs_map",
           "delta_vs_map_se", "delta_vs_flat_map", "delta_vs_flat_map_se", "delta_vs_no_gradient",
           "delta_vs_no_gradient_se", "coverage_90", "psnr_claimed", "rhat_max", "khat", "acceptance",
           "seconds")  # fmt: skip
SPACE = {"tv": (0.03, 10.0)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run.

    images: that are scored. tuning: further images, that the weight of `tv` is tuned on. trials: of that weight.
    quick: ten images at σ = 0.1, the priors that need no training; written to files of their own.
    """

    data_root: Path | None = None
    dataset: str = "mnist"
    network: str = "convnet"
    sigmas: tuple[float, ...] = (0.1, 0.03)
    priors: tuple[str, ...] = tuple(PRIORS)
    images: int = 20
    tuning: int = 3
    trials: int = 6
    quick: bool = False
    workers: int = 2
    effort: Effort = dataclasses.field(default_factory=Effort)
    out: Path = study.RESULTS

    @property
    def name(self) -> str:
        return "stronger_priors" + "_quick" * self.quick


def observed_of(args: Settings, sigma: str, prior: str, index: int) -> Observation:
    """What the image's client shares; `prior` decides which public images its adversary has."""
    made = observe(
        Scenario(
            args.dataset, args.data_root, index, network=Named(args.network), noise_seed=index,
            protection=Protection.parse(f"gaussian:sigma={sigma}"),
        )
    )  # fmt: skip
    if not prior.endswith("|y"):
        return made
    return dataclasses.replace(made, public=of_label(args.dataset, args.data_root, int(made.labels)))


def named(prior: str, tuned: Mapping[str, float]) -> Named:
    """A prior with what was tuned of it: the weight of `tv`, whose column has the name of the prior."""
    return Named(PRIORS[prior], {"weight": tuned["tv"]} if "tv" in tuned else {})


@functools.lru_cache(maxsize=16)  # priors are fitted once to one tensor
def of_label(dataset: str, root: Path | None, label: int) -> torch.Tensor:
    images = data.public(dataset, root)
    return images.x[images.y == label]


def tune(job: study.Job, args: Settings) -> list[study.Row]:
    """Every weight of the total variation, by the MAP of an image that is not scored."""
    _, _, sigma, prior, index = job
    observed = observed_of(args, sigma, prior, index)
    rows = []
    for k, setting in enumerate(study.trials(SPACE, args.trials)):
        density = attacks.density_of(observed, named(prior, setting))
        mode = attacks.climb(density, 0.1, args.effort, index)[0]
        score = attacks.score(density.images(mode[None])[0][0].numpy(), observed)
        rows.append({"trial": k, "psnr": score["psnr"], **setting})
    return rows


def attacked(job: study.Job, args: Settings, tuned: Mapping[tuple[str, ...], Mapping[str, float]]) -> list[study.Row]:
    """The MAP and the mean of one posterior; `decision` is in the rows."""
    dataset, name, sigma, prior, _, index = job
    observed = observed_of(args, sigma, prior, index)
    if prior == "none":
        return attacks.decided([attacks.no_gradient(observed, args.data_root)])
    chosen = tuned.get((dataset, name, sigma, prior), {})
    rows, _ = attacks.bayes(observed, named(prior, chosen), 0.1, [], args.effort, index)
    return [{**row, **chosen} for row in attacks.decided(rows)]


def summarise(rows: Sequence[Mapping[str, str]]) -> list[study.Row]:
    """A row for each σ, prior and decision; differences are paired image by image."""
    groups = study.grouped(rows, (*CELL, "decision"))
    psnr = {key: study.by_image(mine) for key, mine in groups.items()}
    made: list[study.Row] = []
    for key, mine in groups.items():
        mean, se = study.mean_se(psnr[key].values())
        row = {**dict(zip((*CELL, "decision"), key, strict=True)), "images": len(mine)}
        row |= {"psnr_mean": mean, "psnr_se": se}
        others = {"map": (*key[:4], "map"), "flat_map": (*key[:3], "flat", "map")}
        others["no_gradient"] = (*key[:3], "none", "no_gradient")
        for name, other in others.items():
            gap = study.paired(psnr[key], psnr[other]) if other in psnr and other != key else None
            if gap:
                row[f"delta_vs_{name}"], row[f"delta_vs_{name}_se"] = gap
        row |= study.means(mine, ("coverage_90", "psnr_claimed", "rhat_max", "khat", "acceptance", "seconds"))
        made.append(row)
    return made


def report(args: Settings) -> None:
    rows = summarise(study.read(args.out / f"{args.name}_images.csv"))
    if not rows:
        return
    order = ["none", *PRIORS]
    rows.sort(key=lambda r: (-float(r["sigma"]), order.index(r["prior"])))  # a run may add another prior
    study.write(args.out / f"{args.name}.csv", SUMMARY, rows)
    runs.text(args.out / f"{args.name}.md", table(rows))
    titles = {r["sigma"]: f"noise σ = {r['sigma']}" for r in rows}
    figure = pictures.dots(rows, "decision", "sigma", "prior", titles)
    runs.figure(args.out / f"{args.name}.png", figure, dpi=110)


def table(rows: Sequence[study.Row]) -> str:
    """A row for each σ and prior: its MAP, its posterior mean, and how far the posterior is to be trusted."""
    head = ["σ", "prior", "images", "no gradient", "MAP", "posterior mean ≈", "− own MAP", "− flat MAP",
            "− no gradient", "in 90 %", "k-hat"]  # fmt: skip
    known = {r["sigma"]: r for r in rows if r["prior"] == "none"}
    lines = []
    for (sigma, prior), every in study.grouped(rows, ("sigma", "prior")).items():
        mine = {r["decision"]: r for r in every}
        if prior == "none" or "mean" not in mine:
            continue
        mean = mine["mean"]
        lines.append([
            sigma, prior.replace("|", " given "), str(mean["images"]),
            *(study.said(r["psnr_mean"], r["psnr_se"]) if r else "–" for r in (known.get(sigma), mine["map"], mean)),
            *(study.said(mean[c], mean[f"{c}_se"], sign=True) if c in mean else "–"
              for c in ("delta_vs_map", "delta_vs_flat_map", "delta_vs_no_gradient")),
            f"{mean['coverage_90']:.1%}", "–" if mean["khat"] is None else f"{mean['khat']:.2f}",
        ])  # fmt: skip
    return markdown.table([head, *lines]) + "\n"


def main(args: Settings) -> bool:
    torch.set_num_threads(1)
    if args.quick:
        few = ("flat", "tv", "gmrf", "gaussian", "gaussian|y")
        args = dataclasses.replace(args, sigmas=(0.1,), priors=few, images=10, tuning=1, trials=3)
    study.require_known("prior", args.priors, PRIORS)
    study.settle(args, ("tuning", "trials", "effort"), space=SPACE)
    scored, held = study.images(args.dataset, args.data_root, args.images, args.tuning)
    table, images = (args.out / f"{args.name}_{what}.csv" for what in ("tuning", "images"))
    base = [(args.dataset, args.network, f"{sigma:g}") for sigma in args.sigmas]
    jobs = [(*cell, "tv", index) for cell in base for index in held if "tv" in args.priors]
    if not study.run("tuning", jobs, functools.partial(tune, args=args), table, TUNED, (*CELL, "index"), args.workers):
        return False
    work = functools.partial(attacked, args=args, tuned=study.best(study.read(table), CELL))
    jobs = [
        (*cell, prior, decision, index)
        for cell in base
        for index in scored
        for prior, decision in (("none", "no_gradient"), *((p, "mean") for p in args.priors))
    ]
    whole = study.run("priors", jobs, work, images, IMAGE, KEY, args.workers)
    report(args)
    return whole


if __name__ == "__main__":
    study.command(main, Settings, __doc__)
