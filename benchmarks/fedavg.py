"""FedAvg whose order nobody knows: how much of it does each adversary reconstruct, and in how long?

    uv run benchmarks/fedavg.py

A client trains on `examples` digits (8 x 8), `epochs` epochs in batches of `batch` that it shuffles, and shares how its
weights moved; labels are known. The adversaries: `plain` takes the movement for one gradient at the first weights
(Inverting Gradients); `sme`, for one at latent weights between the first and the last (Zhu et al. 2023); `epochs` gives
every epoch images of its own, which are alike as sets (Dimitrov et al. 2022); `order` simulates the epochs and batches
and searches the order with the images (optimal behind a client that shuffles);
`given` is told the order, the bound of what `order` can be. share: of images above 19 dB, over `clients` clients (se:
over clients); psnr: the mean; seconds: the median of one attack. A row that the CSV holds is not made again.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro

from pplleak import runs
from pplleak.client.training import LocalTraining
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, client_of, observe
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack

COLUMNS = {"adversary": str, "client": int, "share": float, "psnr": float, "seconds": float}
ADVERSARIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("inverting_gradients", {"steps": 1000, "optimizer": "adam", "decay": "cosine", "starts": 4}),
    "sme": ("sme", {"steps": 1000}),
    "epochs": ("epochs", {"steps": 600}),
    "order": ("optimal:prior=ppca", {"steps": 600, "starts": 2, "polish": 0}),
    "given": ("optimal:prior=ppca", {"steps": 600, "starts": 2, "polish": 0}),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    clients: int = 3
    examples: int = 10
    epochs: int = 5
    batch: int = 2
    lr: float = 0.05
    sigma: float = 1e-5
    adversaries: tuple[str, ...] = ("plain", "sme", "epochs", "order", "given")
    csv: Path = Path("benchmarks/results/fedavg.csv")


def scenario(args: Settings, client: int, shuffle: bool) -> Scenario:
    local = LocalTraining(args.lr, epochs=args.epochs, batch_size=args.batch, shuffle=shuffle)
    return Scenario(
        "digits", index=args.examples * client, batch_size=args.examples, seed=client, network=Named("mlp"),
        local=local, protection=Protection(channel=Named("gaussian", {"sigma": args.sigma})),
    )  # fmt: skip


def measure(args: Settings, adversary: str, client: int) -> dict[str, Any]:
    told = scenario(args, client, shuffle=adversary != "given")
    observed = observe(told)
    assert observed.truth is not None
    truth, (model, settings) = observed.truth.numpy(), ADVERSARIES[adversary]
    if adversary == "plain":  # the direction of a descent is that of the negative gradient
        observed = replace(observed, g=-observed.g, client=client_of(replace(told, local=None)))
    start = time.perf_counter()
    found = attack(observed, model, "map", settings=settings, seed=0)
    seconds = time.perf_counter() - start
    psnr = metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth)
    return {"adversary": adversary, "client": client, "share": float((psnr > 19).mean()), "psnr": float(psnr.mean()),
            "seconds": seconds}  # fmt: skip


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    table = runs.Rows(args.csv, COLUMNS, ("adversary", "client"))
    done = {table.about(r) for r in table.read()}
    left = [(a, k) for k in range(args.clients) for a in args.adversaries if (a, k) not in done]
    for k in bar("attacks", len(left)):
        table.add([measure(args, *left[k])])
    for adversary in args.adversaries:
        rows = [r for r in table.read() if r["adversary"] == adversary]
        shares = [r["share"] for r in rows]
        error = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else float("nan")
        psnr, seconds = (statistics.mean(r["psnr"] for r in rows), statistics.median(r["seconds"] for r in rows))
        print(f"{adversary}: {statistics.mean(shares):.0%} ± {error:.0%} of the images above 19 dB, mean {psnr:.1f} "
              f"dB, {seconds:.0f} s, {len(rows)} clients")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
