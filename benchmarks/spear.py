"""How large may a batch be that SPEAR separates exactly, and how much noise does it survive?

    uv run benchmarks/spear.py --data-root ../shared/data

MNIST digits behind perceptrons of one hidden ReLU layer, with random weights and with weights that were trained on the
public half (`epochs` of Adam), gradients in float32 with noise of `sigma`. A draw is another batch; an untrained one
has other weights, too. exact_rate: the share of images above 60 dB; psnr: the mean, in dB, of all images, 0 where
nothing was found; seconds: of the attack, the median. A cell ends after `draws` batches, or with the batch in which it
has taken `seconds`; the table says how many. A cell that the CSV holds is not run again, but where it has fewer batches
than that; none begins after `minutes`.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import tyro

from pplleak import data, runs
from pplleak.client import weights
from pplleak.errors import BadInput
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, client_of, observe
from pplleak.inference import spear
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named

COLUMNS = {
    "batch": int, "width": int, "trained": bool, "sigma": float, "draws": int, "exact_rate": float, "psnr": float,
    "seconds": float,
}  # fmt: skip
Cell = tuple[int, int, bool, float]


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path = Path("data")
    """Where MNIST/ lies."""
    batches: tuple[int, ...] = (2, 4, 8, 12, 16, 24, 32)
    widths: tuple[int, ...] = (256, 1000)
    sigmas: tuple[float, ...] = (1e-9, 1e-6, 1e-5, 1e-4, 1e-3)
    """Noise, the others than the first at a batch of 8 alone."""
    draws: int = 10
    seconds: float = 40.0
    """After which a cell begins no other draw."""
    epochs: int = 1
    """Of the trained weights."""
    minutes: float = 60.0
    csv: Path = Path("benchmarks/results/spear.csv")


def scenario(args: Settings, width: int, checkpoint: Path | None = None, **more: Any) -> Scenario:
    network = Named("mlp", {"widths": (width,), "activation": "relu"})
    return Scenario("mnist", args.data_root, network=network, checkpoint=checkpoint, **more)


def train(args: Settings, width: int, path: Path) -> Path:
    """The weights of `epochs` of Adam on the public half, as a checkpoint."""
    torch.manual_seed(0)
    network = client_of(scenario(args, width)).network
    for parameter in network.parameters():
        parameter.requires_grad_()
    public = data.public("mnist", args.data_root)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(args.epochs):
        for batch in torch.randperm(len(public.x)).split(64):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(public.x[batch].float()), public.y[batch]).backward()
            optimiser.step()
    runs.write(path, lambda part: safetensors.torch.save_file(weights.state(network), part))
    return path


def measure(args: Settings, cell: Cell, checkpoint: Path | None) -> dict[str, Any]:
    batch, width, trained, sigma = cell
    rates, seconds, nearness = [], [], []
    for k in range(args.draws):
        protection = Protection(channel=Named("gaussian", {"sigma": sigma}))
        observed = observe(scenario(
            args, width, checkpoint, index=100 * k, batch_size=batch, seed=k, noise_seed=k, protection=protection
        ))  # fmt: skip
        assert observed.truth is not None
        truth = observed.truth.numpy()
        start = time.perf_counter()
        try:
            found = spear.run(None, observed, observed.client, seed=k)
            psnr = metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth)
        except BadInput:
            psnr = torch.zeros(batch).numpy()
        seconds.append(time.perf_counter() - start)
        rates.append(float((psnr > 60).mean()))
        nearness.append(float(psnr.mean()))
        if sum(seconds) > args.seconds:
            break
    return {"batch": batch, "width": width, "trained": trained, "sigma": sigma, "draws": len(rates),
            "exact_rate": statistics.mean(rates), "psnr": statistics.mean(nearness),
            "seconds": statistics.median(seconds)}  # fmt: skip


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    table = runs.Rows(args.csv, COLUMNS, ("batch", "width", "trained", "sigma"))
    end = time.monotonic() + 60 * args.minutes
    done = {
        table.about(r) for r in table.read() if r["draws"] >= args.draws or r["draws"] * r["seconds"] > args.seconds
    }
    first, *noisy = args.sigmas
    sizes = [(b, first) for b in args.batches] + [(8, s) for s in noisy]
    wanted = [(b, w, t, s) for w in args.widths for t in (False, True) for b, s in sizes]
    left = [cell for cell in wanted if cell not in done]
    with tempfile.TemporaryDirectory() as folder:
        checkpoints: dict[int, Path] = {}
        for k in bar("cells", len(left)):
            if time.monotonic() > end:
                break
            _, width, trained, _ = left[k]
            if trained and width not in checkpoints:
                checkpoints[width] = train(args, width, Path(folder) / f"{width}.safetensors")
            table.add([measure(args, left[k], checkpoints[width] if trained else None)])
    for row in table.read():
        kind = "trained" if row["trained"] else "initial"
        print(f"batch {row['batch']}, width {row['width']}, {kind} weights, sigma {row['sigma']:g}: "
              f"{row['exact_rate']:.0%} exact, {row['psnr']:.1f} dB, {row['seconds']:.1f} s, "
              f"{row['draws']} draws")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
