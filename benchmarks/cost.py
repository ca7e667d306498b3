"""What does one posterior gradient cost, in training steps of the same network on a batch of as many images?

    uv run benchmarks/cost.py --data mnist --data-root DIR --network mlp --activation gelu

The posterior gradient is the one that `hmc` takes: all chains in one batch, recorded, in its whitened coordinates. The
training step is one forward and one backward pass. The two are timed in turns; the ratio is that of their medians.
Adds a row to benchmarks/results/cost.csv.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro

from pplleak import density, programs, runs
from pplleak.density.whitening import Laplace, whitened
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.programs import MODEL
from pplleak.settings import Named
from pplleak.studies.attack import attack

COLUMNS = ["posterior", "device", "threads", "chains", "gradient_ms", "training_step_ms", "ratio"]


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    data_root: Path | None = None
    prior: str = "gaussian"
    network: str = "mlp"
    widths: tuple[int, ...] = (256,)
    activation: str = "gelu"
    sigma: float = 0.03
    chains: int = 64
    rounds: int = 60
    csv: Path = Path("benchmarks/results/cost.csv")


def seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def main(args: Settings) -> None:
    settings = {"activation": args.activation, **({"widths": args.widths} if args.network == "mlp" else {})}
    protection = Protection.parse(f"gaussian:sigma={args.sigma}")
    scenario = Scenario(args.data, args.data_root, network=Named(args.network, settings), protection=protection)
    observed = observe(scenario)
    model = attack.believe(programs.load("models", MODEL), observed, {"prior": args.prior})
    d = density.build(model, observed.client, observed)
    torch.manual_seed(0)
    widths = 0.1 * torch.rand(d.dim) + 0.05
    metric = Laplace(torch.zeros(d.dim), widths.diag(), float(widths.log().sum()), 0)
    potential = whitened(d.recorded(args.chains), metric)
    w = torch.randn(args.chains, d.dim)
    network = copy.deepcopy(observed.client.network).requires_grad_(True)
    x, y = torch.rand(args.chains, *observed.client.input_shape), torch.randint(10, (args.chains,))

    def train() -> None:
        network.zero_grad()
        F.cross_entropy(network(x), y).backward()

    jobs = [lambda: potential(w), train]
    for job in jobs * 3:
        job()
    times = [[seconds(job) for job in jobs] for _ in range(args.rounds)]
    gradient, step = (1e3 * statistics.median(t) for t in zip(*times, strict=True))
    name = f"{args.data} {args.prior} {args.network}{args.widths if args.network == 'mlp' else ''} {args.activation}"
    row = dict(zip(COLUMNS, [name, "cpu", torch.get_num_threads(), args.chains, f"{gradient:.2f}", f"{step:.2f}",
                             f"{gradient / step:.2f}"], strict=True))  # fmt: skip
    print(row)
    runs.Rows(args.csv, COLUMNS, COLUMNS[:4]).add([row])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
