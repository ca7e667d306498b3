"""Every classic attack on MNIST test images, from the noiseless gradient, beside invertinggradients on the same one.

OMP_NUM_THREADS=1 uv run --with six benchmarks/classic_attacks.py --data-root ROOT --peer CLONE

CLONE is a checkout of github.com/JonasGeiping/invertinggradients; without it the peer's columns stay empty. Both attack
the same image, network, gradient and label (`idlg` hides it from both) in one process. Seconds are CPU seconds of one
thread, since a wall clock also measures who else is on the machine. The peer keeps its published settings; ours are
those of the model's file, cut to the steps in `OURS`, after which nothing is gained. Where the two differ, the peer
runs with our number of steps, too. Each row of
classic_attacks_images.csv is run once: Ctrl-C loses one attack, and the next run goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch

from pplleak import programs, runs
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack import attack

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FOUND = ROOT / "build" / "classic_attacks"  # the reconstructions, for the picture
SIGMA = 1e-4  # believed; nothing is added
COLUMNS = ("attack", "network", "images", "psnr_median", "seconds", "peer", "peer_psnr_median", "peer_seconds")
US, PEER = "pplleak", "invertinggradients"
NETWORKS = {
    **dict.fromkeys(("dlg", "idlg", "cpl", "wang", "tag"), "lenet"),
    **dict.fromkeys(("inverting_gradients", "gradinversion", "l2", "l1", "cosine"), "convnet"),
}
OURS = {"dlg": 300, "idlg": 300, "inverting_gradients": 800}  # steps; the others keep their model's
# reconstruct_image.py --optim zhu, and the notebook "Recovery from Gradient Information". It has no other attacks: told
# the label, its DLG is its iDLG
ZHU = {"boxed": False, "cost_fn": "l2", "optim": "LBFGS", "total_variation": 0.0, "lr_decay": False}
SIGNED = {"signed": True, "boxed": True, "cost_fn": "sim", "optim": "adam", "total_variation": 1e-6}
PEERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {  # attack: settings, numbers of steps
    "dlg": (ZHU, (300,)),
    "inverting_gradients": (SIGNED, (4000, OURS["inverting_gradients"])),
}


class Job(NamedTuple):
    """One attack on one image by one of the two; steps as a number, or "" for those of the model's file."""

    attack: str
    index: int
    by: str
    steps: str


def observed_of(job: Job, root: Path | None) -> Observation:
    """The client's own gradient, not noised; truth and label known to us alone where the attack reads the label."""
    hidden = job.attack == "idlg"
    protection, network = Protection.parse(f"gaussian:sigma={SIGMA}"), Named(NETWORKS[job.attack])
    observed = observe(Scenario("mnist", root, index=job.index, network=network, protection=protection))
    assert observed.truth is not None
    assert observed.labels is not None
    with torch.no_grad():
        g = observed.client.update(observed.truth, observed.labels).materialise()
    return replace(observed, g=g, labels=None if hidden else observed.labels)


def ours(job: Job, observed: Observation) -> np.ndarray:
    wanted = programs.preferred(job.attack, "map") | ({"steps": int(job.steps)} if job.steps else {})
    return attack.attack(observed, job.attack, "map", settings=wanted).whole().mode


def theirs(job: Job, observed: Observation) -> np.ndarray:
    import inversefed

    settings = {"restarts": 1, "max_iterations": int(job.steps), "init": "randn", **PEERS[job.attack][0]}
    network = observed.client.network.requires_grad_(True)  # ours are frozen, and the peer differentiates in them
    gradient = [g.clone() for g in observed.client.split(observed.g).values()]
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        made = inversefed.GradientReconstructor(network, (torch.zeros(1), torch.ones(1)), settings, num_images=1)
        found, _ = made.reconstruct(gradient, observed.labels, img_shape=observed.client.input_shape)
    return found.clamp(0, 1).numpy()


def run(job: Job, root: Path | None) -> dict[str, Any]:
    """A row: PSNR in dB and CPU seconds; the reconstruction is kept beside it."""
    observed = observed_of(job, root)
    assert observed.truth is not None
    start = time.process_time()
    found = (ours if job.by == US else theirs)(job, observed)
    seconds = time.process_time() - start
    runs.write(file_of(job), functools.partial(keep, found))
    psnr = float(metrics.psnr(found, observed.truth.numpy()).mean())
    return {**job._asdict(), "psnr": round(psnr, 2), "seconds": round(seconds, 2)}


def keep(image: np.ndarray, path: Path) -> None:
    with path.open("wb") as f:  # a name without .npy would be given one
        np.save(f, image)


def file_of(job: Job) -> Path:
    return FOUND / ("-".join(map(str, job)) + ".npy")


def jobs(attacks: Sequence[str], images: int, peer_images: int) -> list[Job]:
    """Ours first, then the peer's; each image by image, so that all attacks have seen the same images."""
    own = [Job(name, index, US, str(OURS.get(name, ""))) for index in range(images) for name in attacks]
    beside = [
        Job(name, index, PEER, str(n))
        for index in range(min(images, peer_images))
        for name in attacks
        for n in (PEERS[name][1] if name in PEERS else ())
    ]
    return own + beside


def summary(rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Medians over images: ours over all of them, then both over those that the peer saw, for each of its budgets."""

    def medians(chosen: Sequence[dict[str, str]], prefix: str = "") -> dict[str, str]:
        middle = {c: f"{statistics.median(float(r[c]) for r in chosen):.1f}" for c in ("psnr", "seconds")}
        return {f"{prefix}psnr_median": middle["psnr"], f"{prefix}seconds": middle["seconds"]}

    table = []
    for name, network in NETWORKS.items():
        own = [r for r in rows if r["attack"] == name and r["by"] == US]
        if not own:
            continue
        beside = [r for r in rows if r["attack"] == name and r["by"] == PEER]
        cell = {"attack": name, "network": network}
        table.append({**cell, "images": len(own), **medians(own)})
        for steps in sorted({r["steps"] for r in beside}, key=int, reverse=True):
            theirs = [r for r in beside if r["steps"] == steps]
            seen = {r["index"] for r in theirs}
            both = [r for r in own if r["index"] in seen]
            said = f"{PEER}, {steps} steps"
            table.append({**cell, "images": len(both), **medians(both), "peer": said, **medians(theirs, "peer_")})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--peer", type=Path, help="a checkout of invertinggradients")
    parser.add_argument("--peer-images", type=int, default=20, help="images that the peer attacks, too")
    parser.add_argument("--only", nargs="+", help="attacks", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peer:
        sys.path.insert(0, str(args.peer))
    kept = runs.Rows(args.out / "classic_attacks_images.csv", (*Job._fields, "psnr", "seconds"), Job._fields)
    have = {kept.about(r) for r in kept.read()}
    todo = [j for j in jobs(args.only, args.images, args.peer_images) if tuple(map(str, j)) not in have]
    todo = [j for j in todo if j.by == US or args.peer]
    with contextlib.suppress(KeyboardInterrupt):
        for k in bar("attacks", len(todo)):
            kept.add([run(todo[k], args.data_root)])
    runs.table(args.out / "classic_attacks.csv", summary(kept.read()), COLUMNS)
    picture(args.data_root)


def picture(root: Path | None, most: int = 4) -> None:
    """Rows: truth, our reconstruction, the peer's; columns: images, of those whose reconstructions are at hand."""
    columns = []
    for name in ("dlg", "inverting_gradients"):
        both = [Job(name, 0, US, str(OURS[name])), Job(name, 0, PEER, str(PEERS[name][1][0]))]
        for index in range(most):
            files = [file_of(job._replace(index=index)) for job in both]
            if all(f.exists() for f in files):
                truth = observed_of(both[0]._replace(index=index), root).truth
                columns.append((f"{name}\n{NETWORKS[name]}", [np.asarray(truth), *map(np.load, files)]))
    if not columns:
        return
    figure, axes = plt.subplots(3, len(columns), figsize=(1.3 * len(columns) + 0.5, 4.6), squeeze=False)
    for axis, label in zip(axes[:, 0], ("truth", "ours", "peer"), strict=True):
        axis.set_ylabel(label, fontsize=11)
    for k, (title, images) in enumerate(columns):
        axes[0, k].set_title(title, fontsize=9)
        for axis, image in zip(axes[:, k], images, strict=True):
            axis.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if image is not images[0]:
                axis.set_xlabel(f"{float(metrics.psnr(image, images[0]).mean()):.0f} dB", fontsize=9)
    figure.tight_layout()
    runs.figure(ROOT / "docs" / "_static" / "classic_attacks.png", figure, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
