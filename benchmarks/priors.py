"""Draws and held-out log-likelihoods of every prior that can be sampled, on scikit-learn's digits.

uv run benchmarks/priors.py        # writes docs/_static/priors.png, prints the table of docs/priors.md
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from pplleak import data, runs
from pplleak.cli import prior as prior_command
from pplleak.priors import _store as store
from pplleak.priors.class_gaussian import fit_class_gaussian
from pplleak.priors.flow import fit as fit_flow
from pplleak.priors.gaussian import fit_gaussian
from pplleak.priors.gmrf import fit_gmrf
from pplleak.priors.logit_normal import fit_logit_normal
from pplleak.priors.mixture import fit as fit_mixture
from pplleak.priors.ppca import fit_ppca
from pplleak.priors.vae import fit as fit_vae

ROOT = Path(__file__).resolve().parents[1]
FITS = {
    "gmrf": fit_gmrf,
    "ppca": fit_ppca,
    "gaussian": fit_gaussian,
    "logit_normal": fit_logit_normal,
    "mixture": fit_mixture,
    "flow": fit_flow,
    "vae": fit_vae,
}


def main() -> None:
    torch.set_num_threads(1)
    public = data.public("digits")
    train, held_out = store.split(public.x)
    labels, _ = store.split(public.y)  # in the same order
    rows = {"images held out": held_out[:12]}
    print("| prior | nats an image, held out | CPU seconds of the fit |\n| --- | --- | --- |")
    fits = {**FITS, "class_gaussian": lambda images: fit_class_gaussian(images, labels, 10, pooled=16.0)}
    for name, fit in fits.items():
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
