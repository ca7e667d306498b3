"""Compressed updates: does an adversary who knows what an entry says see more than one who believes what was sent?

    uv run benchmarks/compressed.py --minutes 10

Digits (8 x 8) behind a perceptron (64-64-10, GELU). Channels: `quantised` to levels, `topk`, the tenth of the entries
that is largest, `sign`, one bit an entry, and `onebit`, signs with a scale and error feedback: in the first round, in
the eleventh by the belief of its likelihood (a residual that is normal, as spread as those of simulated clients), and
`history`: after ten real rounds, in which the client shared other private images of its own. Adversaries: `rog` (Yue
et al. 2022: half as many rows and columns, enlarged, and the squared distance to what was sent), `rog whole` (without
the enlargement), `inverting` (Inverting Gradients: cosine and total variation), `interval` (`optimal` with total
variation: the likelihood of an entry is that of the interval which it names), `gaussian` (the same, under the Gaussian
of public digits), and behind residuals `forgetful` (`gaussian`, which takes them for none). All are MAP, with the steps
of `steps`. psnr: of one image; seconds: processor time. Rows that the CSV holds are not made again.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import tyro

from pplleak import data, runs
from pplleak.channels import onebit
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import metrics
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack

COLUMNS = {"channel": str, "adversary": str, "index": int, "psnr": float, "seconds": float}
HISTORY, ROUNDS = "history", 10  # what really is left of so many rounds
ELEVENTH = f"onebit:rounds={ROUNDS},sigma=0.01"
CHANNELS = ("quantised:step=0.1,sigma=0.01", "topk:rate=0.9,sigma=0.01", "sign:sigma=0.01",
            "onebit:rounds=0,sigma=0.01", ELEVENTH, HISTORY)  # fmt: skip
ADVERSARIES: dict[str, tuple[str, dict[str, Any]]] = {
    "rog": ("rog", {}),
    "rog whole": ("rog", {"scale": 1}),
    "inverting": ("inverting_gradients", {}),
    "interval": ("optimal", {"prior": "tv"}),
    "gaussian": ("optimal", {"prior": "gaussian"}),
    "forgetful": ("optimal", {"prior": "gaussian", "channel": "onebit:rounds=0,sigma=0.01"}),
}
CASES = [(c, a) for c in CHANNELS for a in ADVERSARIES if a != "forgetful" or c in (ELEVENTH, HISTORY)]


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 6
    steps: int = 600
    minutes: float = 10.0
    csv: Path = Path("benchmarks/results/compressed.csv")


def measure(args: Settings, channel: str, adversary: str, index: int) -> dict[str, Any]:
    protection = Protection.parse(ELEVENTH if channel == HISTORY else channel)
    observed = observe(Scenario("digits", index=index, network=Named("mlp"), protection=protection))
    assert observed.truth is not None
    if channel == HISTORY:
        observed = dataclasses.replace(observed, g=after_rounds(observed, index))
    model, beliefs = ADVERSARIES[adversary]
    start = time.process_time()
    found = attack(observed, model, "map", beliefs=beliefs, settings={"steps": args.steps, "starts": 2}, seed=0)
    seconds = time.process_time() - start
    psnr = float(metrics.psnr(found.mode, observed.truth.numpy())[0])
    return {"channel": channel, "adversary": adversary, "index": index, "psnr": psnr, "seconds": seconds}


@torch.no_grad()
def after_rounds(observed: Observation, index: int) -> torch.Tensor:
    """What a client shares of the image behind `observed` when `ROUNDS` others have left a residual."""
    client, images = observed.client, data.private("digits")
    others = (torch.arange(ROUNDS)[:, None] + 100 * (index + 1)) % len(images)
    before = client.update(images.x[others].to(client.dtype), images.y[others]).materialise()
    assert observed.truth is not None and observed.labels is not None
    return onebit.compressed(client.update(observed.truth, observed.labels).materialise() + onebit.residuals(before))


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * args.minutes
    table = runs.Rows(args.csv, COLUMNS, ("channel", "adversary", "index"))
    done = {table.about(r) for r in table.read()}
    left = [j for j in ((c, a, k) for k in range(args.count) for c, a in CASES) if j not in done]
    for k in bar("attacks", len(left)):
        if time.monotonic() > end:
            break
        table.add([measure(args, *left[k])])
    rows = table.read()
    for channel, adversary in CASES:
        psnr = [r["psnr"] for r in rows if (r["channel"], r["adversary"]) == (channel, adversary)]
        seconds = [r["seconds"] for r in rows if (r["channel"], r["adversary"]) == (channel, adversary)]
        if psnr:
            error = statistics.stdev(psnr) / math.sqrt(len(psnr)) if len(psnr) > 1 else math.nan
            print(f"{channel}, {adversary}: {statistics.mean(psnr):.1f} ± {error:.1f} dB, "
                  f"{statistics.median(seconds):.1f} s, {len(psnr)} images")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
