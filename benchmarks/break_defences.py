"""Each defence against the attack of its own paper and against one who knows it, on the same MNIST images.

uv run benchmarks/break_defences.py --data-root ROOT

All four papers evaluated with Inverting Gradients. `gaussian` is the Bayes adversary who has not heard of the defence,
the last column of a row the one who has. Every attack on an image is kept as a row of break_defences_images.csv, and is
not run again; means, standard errors and paired differences are in break_defences.csv, the figure is docs/_static/
defences.png.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pplleak import programs, runs
from pplleak.federation.defences import ats
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import Posterior, metrics
from pplleak.programs import MODEL
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack import attack

ROOT = Path(__file__).resolve().parents[1]
SIGMA = 1e-3  # believed, and added: a thousandth of the gradient's norm
IMAGE = ("network", "defence", "attack", "index", "psnr", "psnr_transformed", "cpu_seconds")
COLUMNS = ("network", "defence", "attack", "images", "psnr_mean", "psnr_se", "over_paper_mean", "over_paper_se",
           "psnr_transformed_mean", "psnr_transformed_se")  # fmt: skip
PAPER = "inverting_gradients"
NETWORKS = {
    "mlp": Named("mlp", {"widths": (64,)}),
    "convnet": Named("convnet", {"channels": (8, 16), "width": 64, "activation": "gelu"}),
}


@dataclass(frozen=True)
class Case:
    """A defence with its settings, and the adversaries: (model, inference) each."""

    network: str
    defence: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    attacks: tuple[tuple[str, str], ...] = ()


CLASSIC, IGNORANT = (PAPER, "map"), (MODEL, "map")
CASES = (
    Case("mlp", "", {}, (CLASSIC, IGNORANT)),
    Case("mlp", "soteria", {"rate": 0.8}, (CLASSIC, IGNORANT, ("soteria", "map"))),
    Case("mlp", "ats", {"policy": "3-1-7"}, (CLASSIC, IGNORANT, ("ats", "map"))),
    Case("mlp", "precode", {"size": 32}, (CLASSIC, IGNORANT, ("precode", "map"), ("precode", "quotient"))),
    Case("mlp", "dropout", {"rate": 0.5}, (CLASSIC, IGNORANT, ("dropout", "map"))),
    Case("convnet", "", {}, (CLASSIC, IGNORANT)),
    Case("convnet", "soteria", {"rate": 0.8}, (CLASSIC, IGNORANT, ("soteria", "map"))),
    Case("convnet", "precode", {"size": 32}, (CLASSIC, IGNORANT, ("precode", "map"))),
    Case("convnet", "dropout", {"rate": 0.5}, (CLASSIC, IGNORANT, ("dropout", "map"))),
)
SHOWN = {"mlp": "fully connected network", "convnet": "convolutional network"}
ATTACKS = {  # name in the files -> its words and colour in the figure
    PAPER: ("the papers' attack (Inverting Gradients)", "#8a8a8a"),
    "gaussian": ("Bayes, has not heard of the defence", "#e3a21a"),
    "knows": ("Bayes, knows the defence", "#1f6feb"),
    "quotient": ("quotient of the first layer, exact", "#1a7f37"),
}


def name_of(model: str, inference: str) -> str:
    known = {PAPER: PAPER, MODEL: "gaussian"}
    return inference if inference == "quotient" else known.get(model, "knows")


def observed_of(case: Case, index: int, root: Path | None) -> Observation:
    defence = Named(case.defence, case.settings) if case.defence else None
    protection = Protection(defence, Named("gaussian", {"sigma": SIGMA}))
    return observe(Scenario("mnist", root, index=index, network=NETWORKS[case.network], protection=protection))


def psnr(truth: Tensor, found: np.ndarray) -> float:
    return float(metrics.psnr(found, truth.numpy()).mean())


def transformed(observed: Observation, found: Posterior, knows: bool) -> float:
    """PSNR of the image that ATS really took the gradient of: T(x̂) of one who knows the policy, else x̂ itself."""
    policy, truth = observed.protection.settings["policy"], observed.truth
    assert truth is not None and observed.labels is not None
    with torch.random.fork_rng(devices=[]):  # as `observe` draws it
        torch.manual_seed(1)
        drawn = ats.choices(policy, len(truth)).sample()
    image = torch.from_numpy(found.mode)
    if knows:
        every = torch.arange(len(ats.variants(policy)))[:, None]
        images = ats.transform(image.expand(len(every), *image.shape), every, policy)
        misfit = observed.client.update(images, observed.labels).sqdist(observed.g)
        image = images[misfit.argmin()]
    return psnr(ats.transform(truth, drawn, policy), image.numpy())


def run(case: Case, model: str, inference: str, index: int, root: Path | None, steps: int) -> dict[str, Any]:
    """One attack on one image, a row of the per-image file; CPU seconds of one thread."""
    observed = observed_of(case, index, root)
    assert observed.truth is not None
    settings = {"steps": steps, "starts": 1, "lr": 0.3} if inference == "map" else {}
    settings |= programs.preferred(model, "map") | {"steps": steps} if inference == "map" else {}
    start = time.process_time()
    found = attack.attack(observed, model, inference, settings=settings).whole()
    seconds = time.process_time() - start
    name = name_of(model, inference)
    row = {"network": case.network, "defence": case.defence or "none", "attack": name, "index": index}
    row |= {"psnr": psnr(observed.truth, found.mode), "cpu_seconds": f"{seconds:.1f}"}
    return row | ({"psnr_transformed": transformed(observed, found, name == "knows")} if case.defence == "ats" else {})


def statistics(values: Iterable[float]) -> tuple[str, str]:
    """Mean and standard error of the mean."""
    v = np.array(list(values))
    return (f"{v.mean():.2f}", f"{v.std(ddof=1) / math.sqrt(len(v)):.2f}" if len(v) > 1 else "") if len(v) else ("", "")


def summary(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """A row an attack; `over_paper` is the paired difference to the papers' attack on the same images."""
    found = []
    for case in CASES:
        mine = [r for r in rows if r["network"] == case.network and r["defence"] == (case.defence or "none")]
        base = {r["index"]: float(r["psnr"]) for r in mine if r["attack"] == PAPER}
        for name in ATTACKS:
            these = [r for r in mine if r["attack"] == name]
            if not these:
                continue
            mean, se = statistics(float(r["psnr"]) for r in these)
            over = statistics(float(r["psnr"]) - base[r["index"]] for r in these if r["index"] in base)
            seen = statistics(float(r["psnr_transformed"]) for r in these if r["psnr_transformed"])
            found.append(dict(zip(COLUMNS, (case.network, case.defence or "none", name, len(these), mean, se,
                                            *(over if name != PAPER else ("", "")), *seen), strict=True)))  # fmt: skip
    return found


def picture(rows: list[dict[str, str]]) -> Figure:
    """A dot an image, a bar the mean; one group a defence, one panel a network."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    title = "Four defences, before and after the adversary knows them (MNIST, initial weights, a dot an image)"
    figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    measured = [n for n in SHOWN if any(r["network"] == n for r in rows)]
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, measured, strict=True):
        cases = [c for c in CASES if c.network == network]
        for k, case in enumerate(cases):
            for s, (name, (label, colour)) in enumerate(ATTACKS.items()):
                values = [float(r["psnr"]) for r in rows if (r["network"], r["defence"], r["attack"]) == (
                    network, case.defence or "none", name)]  # fmt: skip
                if values:
                    place = k + (s - 1.5) * 0.2
                    axes.plot([place] * len(values), values, "o", ms=3.5, alpha=0.5, color=colour)
                    axes.plot(place, np.mean(values), "_", ms=16, mew=2.5, color=colour, label=label)
        names = {"": "no defence", "soteria": "Soteria", "ats": "ATS", "precode": "PRECODE", "dropout": "dropout"}
        axes.set_xticks(range(len(cases)), [names[c.defence] for c in cases])
        axes.set_title(SHOWN[network], fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("PSNR of the reconstruction (dB)\nhigher: more of the image is leaked", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), fontsize=8, frameon=False, ncols=4, loc="outside lower center")
    return figure


def write(rows: list[dict[str, str]], out: Path, figure: Path) -> None:
    runs.table(out / "break_defences.csv", summary(rows), COLUMNS)
    runs.figure(figure, picture(rows), dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400, help="of every climb")
    parser.add_argument("--network", choices=list(NETWORKS), help="that one alone")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "_static" / "defences.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = runs.Rows(args.out / "break_defences_images.csv", IMAGE, ("network", "defence", "attack", "index"))
    have = {(r["network"], r["defence"], r["attack"], int(r["index"])) for r in kept.read()}
    jobs = [(c, m, i, index) for index in range(args.images) for c in CASES for m, i in c.attacks
            if (c.network, c.defence or "none", name_of(m, i), index) not in have
            and args.network in (None, c.network)]  # fmt: skip
    for k in bar("attacks", len(jobs)):
        case, model, inference, index = jobs[k]
        kept.add([run(case, model, inference, index, args.data_root, args.steps)])
    write(kept.read(), args.out, args.figure)


if __name__ == "__main__":
    main()
