"""Real clients, recorded as they train: how much does the adversary lose who believes in plain SGD?

    uv run --all-extras benchmarks/live_clients.py --data-root /path/to/data

Flower's quickstart client: its PyTorch CNN on CIFAR-10 (ReLU, max-pooling, weights as initialised), its `fit` called as
Flower calls it: SGD with momentum 0.9 and η = 0.01, two epochs of N = 10 images in batches of 4, shuffled anew in each
epoch, so that the order is not known. Opacus' client: the same network, one real DP-SGD step, Poisson sampling of 4 out
of 60 expected, clip 1. Both are recorded by `pl.record`; what the server sees is attacked by `map` (labels known) with

    right      what the client does: momentum and epochs; per-example clipping and the lot (one order for all epochs)
    sgd        plain SGD of the same epochs; of Opacus: the mean gradient, with noise of the same σ
    gradient   of Flower: the update divided by −η times its steps, taken for one gradient of all ten images

A row an attack, PSNR over the batch (each example matched to the truth), of the worst and of the best. σ is inferred
where the order is unknown: `order_error` is ‖u(truth) − g‖ / ‖g‖ of the belief at the true images. Rows that the table
holds are not made again.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pplleak as pl
from pplleak import data, runs
from pplleak.client.training import LocalTraining
from pplleak.federation.capture import Private, read
from pplleak.progress import bar

COLUMNS = {
    "client": str, "draw": int, "belief": str, "examples": int, "order_error": float, "psnr": float, "best": float,
    "worst": float, "fits": bool | None, "nats_left": float | None, "seconds": float,
}  # fmt: skip
LR, MOMENTUM, EPOCHS, BATCH, N = 0.01, 0.9, 2, 4, 10
NOISES = (0.01, 0.1)  # noise multipliers
INFER: dict[str, Any] = {"sigma": "infer"}


@dataclasses.dataclass(frozen=True)
class Settings:
    draws: int = 4
    """Clients of each kind."""
    steps: int = 400
    """Of the search; it starts four times."""
    data_root: Path | None = None
    csv: Path = Path("benchmarks/results/live_clients.csv")


class Net(nn.Module):
    """The network of Flower's PyTorch quickstart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.conv2(self.pool(F.relu(self.conv1(x))))))
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


def flower(draw: int, images: data.Images, folder: Path) -> tuple[pl.Observation, Private]:
    """A quickstart client's `fit`, recorded."""
    from flwr.client import NumPyClient

    class Client(NumPyClient):
        def __init__(self, net: nn.Module, loader: Any) -> None:
            self.net, self.loader = net, loader

        def fit(self, parameters: Any, config: Any) -> tuple[Any, int, dict[str, Any]]:
            names = self.net.state_dict()
            self.net.load_state_dict({n: torch.tensor(v) for n, v in zip(names, parameters, strict=True)})
            criterion = nn.CrossEntropyLoss()
            optimizer = torch.optim.SGD(self.net.parameters(), lr=LR, momentum=MOMENTUM)
            self.net.train()
            for _ in range(EPOCHS):
                for x, y in self.loader:
                    optimizer.zero_grad()
                    criterion(self.net(x), y).backward()
                    optimizer.step()
            return [v.numpy() for v in self.net.state_dict().values()], len(self.loader.dataset), {}

    torch.manual_seed(draw)
    client = Client(Net(), DataLoader(TensorDataset(*images.batch(N * draw, N)), batch_size=BATCH, shuffle=True))
    sent = [v.numpy().copy() for v in Net().state_dict().values()]
    path = folder / f"flower-{draw}.safetensors"
    with pl.record(client.net, path):
        client.fit(sent, {})
    return observed(path, images)


def opacus(draw: int, noise: float, images: data.Images, folder: Path) -> tuple[pl.Observation, Private]:
    """One step of Opacus with Poisson sampling, recorded."""
    from opacus import PrivacyEngine

    torch.manual_seed(draw)
    net = Net()
    engine = PrivacyEngine()
    net, optimizer, loader = engine.make_private(
        module=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), noise_multiplier=noise, max_grad_norm=1.0,
        data_loader=DataLoader(TensorDataset(*images.batch(60 * draw, 60)), batch_size=BATCH),
    )  # fmt: skip
    x, y = next((x, y) for x, y in loader if len(y))
    path = folder / f"opacus-{noise}-{draw}.safetensors"
    with pl.record(net, path):
        nn.CrossEntropyLoss()(net(x), y).backward()
        optimizer.step()
    return observed(path, images)


def observed(path: Path, images: data.Images) -> tuple[pl.Observation, Private]:
    """What the server sees, with the labels and, for the score, the truth."""
    kept = read(path.parent / "private" / path.name)
    seen = pl.load(path, network=f"{__file__}:Net")
    return dataclasses.replace(seen, labels=kept.y, truth=kept.x), kept


def beliefs(kind: str, seen: pl.Observation) -> Iterator[tuple[str, pl.Observation, dict[str, Any]]]:
    """Each adversary: its name, the observation as it takes it, the beliefs of its model."""
    if kind == "flower":
        yield "right", seen, INFER
        plain = dataclasses.replace(seen.client, local=LocalTraining(LR, epochs=EPOCHS, batch_size=BATCH))
        yield "sgd", dataclasses.replace(seen, client=plain), INFER
        steps = EPOCHS * -(-N // BATCH)
        network = copy.deepcopy(seen.client.network).requires_grad_()
        one = pl.Client(network, seen.client.input_shape, seen.client.num_classes)
        yield "gradient", dataclasses.replace(seen, client=one, g=-seen.g / (LR * steps)), INFER
    else:
        yield "right", seen, {}
        channel = seen.protection.channel
        assert channel is not None
        settings = channel.settings
        sigma = settings["noise_multiplier"] * settings["clip"] / (settings["lot"] or seen.batch_size)
        yield "sgd", dataclasses.replace(seen, protection=pl.Protection.parse(f"gaussian:sigma={sigma}")), {}


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    images = data.private("cifar10", settings.data_root)
    public = data.public("cifar10", settings.data_root).x
    table = runs.Rows(settings.csv, COLUMNS, ("client", "draw", "belief"))
    done = {(r["client"], r["draw"], r["belief"]) for r in table.read()}
    kinds = ["flower", *(f"opacus z={z:g}" for z in NOISES)]
    jobs = [(k, d) for d in range(settings.draws) for k in kinds]
    with tempfile.TemporaryDirectory() as folder:
        for j in bar("clients", len(jobs)):
            kind, draw = jobs[j]
            if kind == "flower":
                seen, kept = flower(draw, images, Path(folder))
            else:
                seen, kept = opacus(draw, float(kind.partition("=")[2]), images, Path(folder))
            for name, believed, knows in beliefs(kind.split()[0], dataclasses.replace(seen, public=public)):
                if (kind, draw, name) in done:
                    continue
                begin = time.perf_counter()
                with torch.no_grad():
                    u = believed.client.update(kept.x, kept.y).materialise()
                found = pl.attack(believed, inference="map", beliefs=knows,
                                  settings={"steps": settings.steps, "starts": 4})  # fmt: skip
                each = [e["psnr_map"] for e in found.summary["examples"]]
                table.add([{
                    "client": kind, "draw": draw, "belief": name, "examples": len(kept.y),
                    "order_error": float((u - believed.g).norm() / believed.g.norm()),
                    "psnr": sum(each) / len(each), "best": max(each), "worst": min(each),
                    "fits": found.summary["fits"], "nats_left": found.attrs.get("nats_left"),
                    "seconds": time.perf_counter() - begin,
                }])  # fmt: skip
    for kind in kinds:
        for name in ("right", "sgd", "gradient"):
            psnrs = [r["psnr"] for r in table.read() if (r["client"], r["belief"]) == (kind, name)]
            if psnrs:
                print(f"{kind:<14} {name:<9} {sum(psnrs) / len(psnrs):5.2f} dB over {len(psnrs)}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
