"""MAP on batches of 8, 16 and 32 images: the paired score of every example, labels known and unknown.

    uv run benchmarks/batches.py --data mnist --data-root ROOT

A batch is `batch` private images from `index` on; the MAP of the model optimal (Gaussian prior fitted to public images)
is matched to them example by example (the assignment with the least squared error), and a row has the mean of the
examples' PSNR in dB, the worst, and how many of the labels (as counts) are right. Unknown labels of more than 10,000
counts are moved through (`pplleak.density.moves`). Prints, for each batch size, the mean over batches and its standard
error. A batch that the CSV holds is not attacked again; one that is interrupted is lost.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from pplleak import runs
from pplleak.federation.scenario import Scenario, observe
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack

COLUMNS = {
    "batch": int, "labels": str, "index": int, "psnr": float, "psnr_worst": float, "psnr_of_mean_image": float,
    "labels_right": float, "fits": str, "converged": str, "seconds": float,
}  # fmt: skip
Labels = Literal["known", "unknown"]


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "mnist"
    data_root: Path | None = None
    batches: tuple[int, ...] = (8, 16, 32)
    labels: tuple[Labels, ...] = ("known", "unknown")
    count: int = 3
    """Batches of each size."""
    network: str = "mlp:widths=(256,)"
    sigma: float = 1e-4
    starts: int = 2
    steps: int = 600
    csv: Path = Path("benchmarks/results/batches.csv")


def measure(args: Settings, batch: int, labels: Labels, index: int) -> dict[str, Any]:
    """One batch attacked."""
    scenario = Scenario(
        args.data,
        args.data_root,
        index=index,
        batch_size=batch,
        labels=labels,
        network=Named.parse(args.network),
        protection=f"gaussian:sigma={args.sigma}",
    )  # type: ignore[arg-type]
    observed = observe(scenario)
    truth, public = observed.truth, observed.public
    assert truth is not None and public is not None
    found = attack(observed, inference="map", settings={"starts": args.starts, "steps": args.steps}, seed=index)
    summary = found.summary
    scores = [e["psnr_map"] for e in summary["examples"]]
    true = observe(dataclasses.replace(scenario, labels="known")).labels
    assert true is not None
    right = sum((Counter(found.y[0, 0].tolist()) & Counter(true.tolist())).values()) / batch
    plain = (truth - public.mean(0)).square().flatten(1).mean(1)
    return {
        "batch": batch, "labels": labels, "index": index, "psnr": float(np.mean(scores)), "psnr_worst": min(scores),
        "psnr_of_mean_image": float((-10 * plain.log10()).mean()), "labels_right": right,
        "fits": str(summary["fits"]), "converged": str(summary["converged"]), "seconds": summary["seconds"],
    }  # fmt: skip


def report(rows: Sequence[dict[str, Any]]) -> None:
    """The mean over batches, and its standard error, for each size."""
    for batch, labels in sorted({(r["batch"], r["labels"]) for r in rows}):
        own = [r for r in rows if (r["batch"], r["labels"]) == (batch, labels)]
        scores = np.array([r["psnr"] for r in own])
        error = f" ± {scores.std(ddof=1) / math.sqrt(len(scores)):.1f}" if len(scores) > 1 else ""
        mean = {n: float(np.mean([r[n] for r in own])) for n in ("psnr_of_mean_image", "labels_right", "seconds")}
        print(f"B = {batch}, labels {labels}: {scores.mean():.1f}{error} dB, worst example "
              f"{min(r['psnr_worst'] for r in own):.1f}, the mean image {mean['psnr_of_mean_image']:.1f}; labels right "
              f"{mean['labels_right']:.0%}; fits {sum(r['fits'] == 'True' for r in own)} of {len(own)}; "
              f"{mean['seconds']:.0f} s")  # fmt: skip


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    table = runs.Rows(args.csv, COLUMNS, ("batch", "labels", "index"))
    done = {table.about(r) for r in table.read()}
    wanted = [(b, w, k * b) for b in args.batches for k in range(args.count) for w in args.labels]
    left = [job for job in wanted if tuple(job) not in done]
    for k in bar("batches", len(left)):
        table.add([measure(args, *left[k])])
    report(table.read())


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
