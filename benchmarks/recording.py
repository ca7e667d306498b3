"""What recording costs beside the training that it records: seconds with and without, in one run.

    uv run benchmarks/recording.py

Flower's quickstart network (its PyTorch CNN, 32×32 colours) trains on 320 random images in batches of 32 for two
epochs, and ResNet-18 on 64 in batches of 16 for one, with and without `pl.record` around it, in turn; medians. A row
a network: seconds of the plain training, of the watched one (inside the block), their ratio, and of writing the files
when the block is left, which does not depend on the number of steps.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
import tyro
from live_clients import Net
from torch import nn

import pplleak as pl
from pplleak import runs

COLUMNS = ("network", "steps", "plain_seconds", "watched_seconds", "ratio", "writing_seconds")


@dataclasses.dataclass(frozen=True)
class Settings:
    repeats: int = 7
    csv: Path = Path("benchmarks/results/recording.csv")


def trained(network: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int, epochs: int) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(epochs):
        for xs, ys in zip(x.split(batch), y.split(batch), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(xs), ys).backward()
            optimizer.step()


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    made = []
    cases = (
        ("flower's CNN", Net, 320, 32, 2, "live_clients.py:Net"),
        ("resnet18", torchvision.models.resnet18, 64, 16, 1, "net.py:build"),
    )
    for name, build, size, batch, epochs, source in cases:
        x, y = torch.rand(size, 3, 32, 32), torch.randint(10, (size,))
        seconds: dict[bool, list[float]] = {False: [], True: []}
        writing = []
        with tempfile.TemporaryDirectory() as folder:
            for k in range(2 * settings.repeats):
                network, recorded = build(), bool(k % 2)
                begin = time.perf_counter()
                if recorded:
                    with pl.record(network, Path(folder) / "o.safetensors", source=source):
                        trained(network, x, y, batch, epochs)
                        end = time.perf_counter()
                    writing.append(time.perf_counter() - end)
                else:
                    trained(network, x, y, batch, epochs)
                    end = time.perf_counter()
                seconds[recorded].append(end - begin)
        plain, with_it = (statistics.median(seconds[r]) for r in (False, True))
        made.append({"network": name, "steps": epochs * size // batch, "plain_seconds": round(plain, 4),
                     "watched_seconds": round(with_it, 4), "ratio": round(with_it / plain, 3),
                     "writing_seconds": round(statistics.median(writing), 4)})  # fmt: skip
        print(made[-1])
    runs.table(settings.csv, made, COLUMNS)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
