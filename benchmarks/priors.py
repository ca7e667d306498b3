"""Draws and held-out log-likelihoods of every prior that can be sampled, on scikit-learn's digits.

uv run benchmarks/priors.py        # writes docs/_static/priors.png, prints the table of docs/priors.md
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from pplleak import data, priors, runs
from pplleak.cli import prior as prior_command
from pplleak.priors import store

ROOT = Path(__file__).resolve().parents[1]
FITS = {
    "gmrf": priors.fit_gmrf,
    "ppca": priors.fit_ppca,
    "gaussian": priors.fit_gaussian,
    "logit_normal": priors.fit_logit_normal,
    "mixture": priors.fit_mixture,
    "flow": priors.fit_flow,
    "vae": priors.fit_vae,
}


def main() -> None:
    torch.set_num_threads(1)
    train, held_out = store.split(data.public("digits").x)
    rows = {"images held out": held_out[:12]}
    print("| prior | nats an image, held out | CPU seconds of the fit |\n| --- | --- | --- |")
    for name, fit in FITS.items():
        start = time.process_time()
        fitted = fit(train)
        seconds = time.process_time() - start
        torch.manual_seed(0)
        rows[name] = fitted.draw(12).double()
        score = fitted.log_prob(held_out)
        said = f"{float(score.mean()):.1f} ± {float(score.std()) / len(score) ** 0.5:.1f}"
        print(f"| `{name}` | {said if name != 'logit_normal' else '–'} | {seconds:.1f} |", flush=True)
    runs.figure(ROOT / "docs" / "_static" / "priors.png", prior_command.picture(rows), dpi=80)


if __name__ == "__main__":
    main()
