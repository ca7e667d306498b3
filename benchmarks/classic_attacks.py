"""Every classic attack on MNIST test images, noiseless gradients, beside invertinggradients on the same ones.

uv run --with six benchmarks/classic_attacks.py --data-root ROOT --peer CLONE

CLONE is a checkout of github.com/JonasGeiping/invertinggradients; without it the peer's columns stay empty. Every
attack on an image is kept as a row of classic_attacks_images.csv, and is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pplleak import attack, metrics, programs
from pplleak.attack import Target
from pplleak.progress import bar

RESULTS = Path(__file__).resolve().parent / "results"
SIGMA = 1e-4  # believed, and added: next to no noise
COLUMNS = ("attack", "network", "images", "psnr_median", "seconds", "peer", "peer_psnr_median", "peer_seconds")
IMAGE = ("attack", "network", "index", "psnr", "seconds", "peer_psnr", "peer_seconds")
JOBS = [
    *((name, "lenet") for name in ("dlg", "idlg", "cpl", "wang", "tag")),
    *((name, "convnet") for name in ("inverting_gradients", "gradinversion", "l2", "l1", "cosine")),
]
PEERS: dict[str, dict[str, Any]] = {  # the peer's settings for the same attack; it has no others
    "inverting_gradients": {"signed": True, "boxed": True, "cost_fn": "sim", "optim": "adam", "total_variation": 1e-6},
    "dlg": {"boxed": False, "cost_fn": "l2", "optim": "LBFGS", "total_variation": 0.0, "lr_decay": False},
}
PEER_STEPS = {"inverting_gradients": 4000, "dlg": 300}


def psnr(truth: np.ndarray, found: np.ndarray) -> float:
    return float(metrics.psnr(found, truth).mean())


def peer(path: Path, name: str, target: Target, steps: int | None) -> tuple[float, float]:
    """PSNR and seconds of the peer on the same network, image and gradient; its label is known, as ours is."""
    sys.path.insert(0, str(path))
    import inversefed

    assert target.truth is not None and target.observed.labels is not None
    settings = {"restarts": 1, "max_iterations": steps or PEER_STEPS[name], "init": "randn", **PEERS[name]}
    network = target.client.network
    for p in network.parameters():
        p.requires_grad_(True)  # ours are frozen, and the peer differentiates in them
    gradient = [g.clone() for g in target.client.split(target.observed.g).values()]
    torch.manual_seed(0)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        made = inversefed.GradientReconstructor(network, (torch.zeros(1), torch.ones(1)), dict(settings), num_images=1)
        found, _ = made.reconstruct(gradient, target.observed.labels, img_shape=target.client.input_shape)
    seconds = time.perf_counter() - start
    assert isinstance(network, nn.Module)
    network.requires_grad_(False)
    return psnr(target.truth.numpy(), found.clamp(0, 1).numpy()), seconds


def done(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open())) if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--steps", type=int, help="instead of each attack's own, to try the script")
    parser.add_argument("--peer", type=Path, help="a checkout of invertinggradients")
    parser.add_argument("--only", nargs="+", help="attacks", choices=[name for name, _ in JOBS])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "classic_attacks_images.csv"
    have = {(r["attack"], r["network"], int(r["index"])) for r in done(kept)}
    jobs = [(a, n, i) for a, n in JOBS for i in range(args.images) if not args.only or a in args.only]
    jobs = [job for job in jobs if job not in have]
    for k in bar("attacks", len(jobs)):
        name, network, index = jobs[k]
        target = attack.from_data("mnist", root=args.data_root, network=network, index=index, sigma=SIGMA)
        assert target.truth is not None
        wanted = programs.preferred(name, "map") | ({"steps": args.steps} if args.steps else {})
        start = time.perf_counter()
        found = attack.attack(target, name, "map", settings=wanted)
        row: dict[str, Any] = {"attack": name, "network": network, "index": index}
        row |= {"psnr": psnr(target.truth.numpy(), found.mode), "seconds": time.perf_counter() - start}
        if args.peer and name in PEERS:
            row["peer_psnr"], row["peer_seconds"] = peer(args.peer, name, target, args.steps)
        fresh = not kept.exists()
        with kept.open("a", newline="") as f:
            writer = csv.DictWriter(f, IMAGE)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
    with (args.out / "classic_attacks.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        for name, network in JOBS:
            rows = [r for r in done(kept) if (r["attack"], r["network"]) == (name, network)]
            if rows:
                writer.writerow({"attack": name, "network": network, "images": len(rows), **medians(rows)})


def medians(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Over the images; the peer's where it ran on all of them."""

    def median(column: str) -> str:
        return f"{statistics.median(float(r[column]) for r in rows):.2f}"

    found = {"psnr_median": median("psnr"), "seconds": median("seconds")}
    if all(r["peer_psnr"] for r in rows):
        theirs = {"peer_psnr_median": median("peer_psnr"), "peer_seconds": median("peer_seconds")}
        found |= {"peer": "invertinggradients", **theirs}
    return found


if __name__ == "__main__":
    main()
