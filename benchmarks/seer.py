"""What does a secret decoder (SEER) see of real batches, and what does a client see of its weights?

    uv run benchmarks/seer.py --minutes 4

Digits behind a perceptron (64-64-10, ReLU), whose weights and decoder are trained on the public half; batches of the
private half, noise of 1e-9. weights: `seer`, those it was trained with; `initial`, others, to which the same decoder is
applied. psnr: of the brightest image of a batch, in dB, decoded; se: its standard error over batches; mean_psnr: of the
mean of public images in its place; suspicious_layers: by the check of weights; loudest: the largest share that one
example's gradient has of the sum of all examples' norms, over layers and batches on average (what a client can look at,
as the paper's D-SNR does); 1/batch if all are alike. seconds: processor time of the training. Rows that the CSV holds
are not made again.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import tyro

from pplleak import data, runs
from pplleak.client import Client
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, client_of, observe
from pplleak.inference import seer as decoder
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.crafted import crafted, seer

COLUMNS = {
    "batch": int, "steps": int, "weights": str, "draws": int, "psnr": float, "se": float, "mean_psnr": float,
    "suspicious_layers": int, "loudest": float, "seconds": float,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    batches: tuple[int, ...] = (8,)
    steps: int = 9000
    draws: int = 30
    minutes: float = 10.0
    csv: Path = Path("benchmarks/results/seer.csv")


def brightest(observed: Observation) -> torch.Tensor:
    assert observed.truth is not None
    return observed.truth[observed.truth.flatten(1).mean(1).argmax()]


def loudest(client: Client, observed: Observation) -> float:
    """The largest share of one example's gradient in a layer, by norms."""
    assert observed.truth is not None and observed.labels is not None
    examples = client.materialised(observed.truth, observed.labels).examples  # (batch, D)
    norms = torch.stack([examples[:, where].norm(dim=1) for where in client.slices.values()], 1)
    return float((norms / norms.sum(0)).max())


def measure(args: Settings, batch: int, folder: Path) -> list[dict[str, Any]]:
    named = Named("mlp", {"widths": (64,), "activation": "relu"})
    public, start = data.public("digits"), time.process_time()
    made = seer.train(client_of(Scenario("digits", network=named)), public.x, public.y, batch_size=batch,
                      steps=args.steps, progress=bar)  # fmt: skip
    seconds = time.process_time() - start
    runs.tensors(folder / "seer.safetensors", made.weights, {})
    runs.tensors(folder / "decoder.safetensors", made.decoder, {})
    mean, rows = public.x.double().mean(0), []
    for weights in ("seer", "initial"):
        psnr, means, shares = [], [], []
        for k in range(args.draws):
            observed = observe(Scenario(
                "digits", network=named, checkpoint=folder / "seer.safetensors" if weights == "seer" else None,
                index=k * batch, batch_size=batch, protection=Protection(channel=Named("gaussian", {"sigma": 1e-9})),
            ))  # fmt: skip
            found = decoder.run(None, observed, observed.client, decoder=str(folder / "decoder.safetensors"))
            wanted = brightest(observed)[None].numpy()
            own = (torch.as_tensor(found.mode).double() - mean).flatten(1).abs().sum(1).argmax()  # the others are it
            psnr.append(float(metrics.psnr(found.mode[[int(own)]], wanted)[0]))
            means.append(float(metrics.psnr(mean[None].float().numpy(), wanted)[0]))
            shares.append(loudest(observed.client, observed))
        values = torch.tensor([psnr, means, shares]).double()
        tensors = made.weights if weights == "seer" else dict(observed.client.parameters)
        rows.append({
            "batch": batch, "steps": args.steps, "weights": weights, "draws": args.draws,
            "psnr": float(values[0].mean()),
            "se": float(values[0].std()) / args.draws**0.5, "mean_psnr": float(values[1].mean()),
            "suspicious_layers": len(crafted.suspicions(tensors)), "loudest": float(values[2].mean()),
            "seconds": seconds,
        })  # fmt: skip
    return rows


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * args.minutes
    table = runs.Rows(args.csv, COLUMNS, ("batch", "steps", "weights"))
    done = {(r["batch"], r["steps"]) for r in table.read()}
    for batch in [b for b in args.batches if (b, args.steps) not in done]:
        if time.monotonic() < end:
            with tempfile.TemporaryDirectory() as folder:
                table.add(measure(args, batch, Path(folder)))
    for r in table.read():
        print(f"batch {r['batch']}, {r['steps']} steps, {r['weights']} weights: {r['psnr']:.1f} ± {r['se']:.1f} dB, "
              f"the mean image {r['mean_psnr']:.1f}; {r['suspicious_layers']} layers suspicious, loudest "
              f"{r['loudest']:.2f}; {r['draws']} batches, {r['seconds']:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
