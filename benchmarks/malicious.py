"""How much of a batch do crafted weights give away, and does the check of weights see them, and nothing else?

    uv run benchmarks/malicious.py --data-root ../shared/data

Real MNIST batches behind a perceptron of `width` units with an imprinted first layer (Robbing the Fed), float32, noise
of 1e-9 on the gradient. exact_rate: the share of images above 60 dB, over `draws` batches of other images;
expected: (1 − 1/k)^(B − 1). Then the check, on initial weights of torchvision's networks, ours trained, and crafted.
A row that a CSV holds is not made again.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import torchvision
import tyro

from pplleak import data, runs
from pplleak.client import weights
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, client_of, observe
from pplleak.inference import imprint
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.crafted import crafted

COLUMNS = {"batch": int, "width": int, "draws": int, "exact_rate": float, "se": float, "expected": float,
           "seconds": float}  # fmt: skip
CHECKED = {"network": str, "weights": str, "suspicious_layers": int, "layers": int}
INITIAL = ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "vit_b_32", "densenet121")
TRAINED = ("mlp", "lenet", "convnet", "vit")


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path = Path("data")
    """Where MNIST/ lies."""
    batches: tuple[int, ...] = (8, 32, 64)
    width: int = 256
    draws: int = 20
    csv: Path = Path("benchmarks/results/malicious.csv")
    checked: Path = Path("benchmarks/results/malicious_check.csv")


def trained(args: Settings, name: str) -> dict[str, torch.Tensor]:
    """Weights after 300 steps of Adam on MNIST's public half."""
    torch.manual_seed(0)
    network = client_of(Scenario("mnist", args.data_root, network=Named(name))).network.requires_grad_()
    public = data.public("mnist", args.data_root)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for batch in torch.randint(len(public.x), (300, 64)):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(public.x[batch].float()), public.y[batch]).backward()
        optimiser.step()
    return weights.state(network)


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    named = Named("mlp", {"widths": (args.width,), "activation": "relu"})
    client = client_of(Scenario("mnist", args.data_root, network=named))
    made = crafted.imprinted(client, data.public("mnist", args.data_root).x)
    table = runs.Rows(args.csv, COLUMNS, ("batch", "width"))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "crafted.safetensors"
        safetensors.torch.save_file(made, checkpoint)
        for batch in [b for b in args.batches if (b, args.width) not in {table.about(r) for r in table.read()}]:
            rates, seconds = [], []
            for k in bar(f"batches of {batch}", args.draws):
                observed = observe(Scenario(
                    "mnist", args.data_root, network=named, checkpoint=checkpoint, index=100 * k, batch_size=batch,
                    protection=Protection(channel=Named("gaussian", {"sigma": 1e-9})), labels="unknown",
                ))  # fmt: skip
                assert observed.truth is not None
                truth, start = observed.truth.numpy(), time.perf_counter()
                found = imprint.run(None, observed, observed.client)
                seconds.append(time.perf_counter() - start)
                psnr = metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth)
                rates.append(float((psnr > 60).mean()))
            table.add([{
                "batch": batch, "width": args.width, "draws": args.draws, "exact_rate": statistics.mean(rates),
                "se": statistics.stdev(rates) / args.draws**0.5, "expected": (1 - 1 / args.width) ** (batch - 1),
                "seconds": statistics.median(seconds),
            }])  # fmt: skip
    checks = runs.Rows(args.checked, CHECKED, ("network", "weights"))
    torch.manual_seed(0)
    kinds: dict[str, Callable[[str], dict[str, torch.Tensor]]] = {
        "initial": lambda name: torchvision.models.get_model(name).state_dict(),
        "trained": lambda name: trained(args, name),
        "crafted": lambda name: made,
    }
    looked = [*((n, "initial") for n in INITIAL), *((n, "trained") for n in TRAINED), ("mlp", "crafted")]
    for name, kind in [n for n in looked if n not in {checks.about(r) for r in checks.read()}]:
        tensors = kinds[kind](name)
        count = sum(t.dim() > 1 for t in tensors.values())
        checks.add([{"network": name, "weights": kind, "suspicious_layers": len(crafted.suspicions(tensors)),
                     "layers": count}])  # fmt: skip
    for row in table.read():
        print(f"batch {row['batch']}: {row['exact_rate']:.1%} ± {row['se']:.1%} exact, {row['expected']:.1%} expected, "
              f"{row['seconds']:.2f} s")  # fmt: skip
    for row in checks.read():
        print(f"{row['network']}, {row['weights']}: {row['suspicious_layers']} of {row['layers']} layers suspicious")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
