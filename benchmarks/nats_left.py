"""Do the nats that a search says it has left agree with what is really left?

    uv run benchmarks/nats_left.py

20 digits behind each of four networks, each climbed for a few steps (in turn 5, 15, 40 and 100) from one prior draw:
`nats_left`, as `--inference map` reports it, against `truth`, how much higher a much longer climb from the same end
gets (Adam, then truncated Newton steps until nothing is left). Prints Spearman's rank correlation and the largest
understatement, for each network and over all. A climb that the CSV holds is not run again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
import tyro
from scipy.stats import spearmanr

from pplleak import programs, runs
from pplleak.density import build
from pplleak.density.decrement import decrement, polish
from pplleak.density.search import maximise
from pplleak.federation.scenario import Scenario, observe
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack.attack import believe

COLUMNS = {
    "network": str, "index": int, "steps": int, "nats_left": float, "at_least": bool, "products": int, "truth": float,
}  # fmt: skip
NETWORKS = ("mlp", "convnet", "lenet", "linear")
STEPS = (5, 15, 40, 100)


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 20
    """Digits behind each network."""
    longer: int = 150
    """Steps of Adam in the longer climb, before Newton's."""
    csv: Path = Path("benchmarks/results/nats_left.csv")


def measure(network: str, index: int, steps: int, longer: int) -> dict[str, Any]:
    """One climb: what it says is left, and what a longer one from its end gains."""
    observed = observe(Scenario("digits", network=Named(network), index=index, noise_seed=index))
    density = build(believe(programs.load("models", "optimal"), observed), observed.client, observed)
    pyro.set_rng_seed(index)
    short = maximise(density, starts=1, steps=steps)
    log_density = functools.partial(density, jacobian=False)
    said = decrement(log_density, short.z[0])
    further = maximise(density, begin=short.z[:1], steps=longer, lr=0.05)
    # two ways up, of which the higher counts
    ends = [polish(log_density, z, 20)[0] for z in (further.z[0], short.z[0])]
    with torch.no_grad():
        top = float(log_density(torch.stack(ends)).max())
    return {"network": network, "index": index, "steps": steps, "nats_left": said.nats, "at_least": said.at_least,
            "products": said.products, "truth": top - float(short.value[0])}  # fmt: skip


def agreement(rows: Sequence[dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    """Spearman's correlation of what is said with the truth, and the row with the largest truth / said."""
    said, truth = [r["nats_left"] for r in rows], [r["truth"] for r in rows]
    worst = max(rows, key=lambda r: r["truth"] / max(r["nats_left"], 1e-9))
    return float(spearmanr(said, truth).statistic), worst


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    table = runs.Rows(args.csv, COLUMNS, ("network", "index"))
    rows = table.read()
    wanted = [(n, k) for n in NETWORKS for k in range(args.count)]
    done = {table.about(r) for r in rows}
    left = [job for job in wanted if job not in done]
    for step in bar("climbs", len(left)):
        network, index = left[step]
        rows = table.add([measure(network, index, STEPS[index % len(STEPS)], args.longer)])
    for name in (*NETWORKS, "all"):
        correlation, worst = agreement([r for r in rows if name in (r["network"], "all")])
        print(
            f"{name}: rank correlation {correlation:.3f}; most understated: {worst['nats_left']:.3g} said, "
            f"{worst['truth']:.3g} left ({worst['network']}, digit {worst['index']}, {worst['steps']} steps)"
        )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
