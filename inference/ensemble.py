"""An ensemble of maxima, pooled: the median over many starts (a point, without uncertainty).

    x̂ = median over the starts k of x_{π_k}(z_k),    z_k the end of start k of a climb of log p(z | g)

with π_k the order of its examples that is nearest to the best start's. Of records the entropy of a category over the
pooled ensemble says how sure it is (Vero et al. 2023, section 4.3): −Σ p log p / log K of the pooled p, and of a number
½ + ½ log 2πv with v the ensemble's variance, in standardised units. It is a score, and no probability.

Source: Vero, Balunović, Dimitrov, Vechev 2023 (TabLeak), sections 4.2 and 4.3.
"""

from __future__ import annotations

import math

import numpy as np
import pyro

from pplleak.client import Client
from pplleak.data.columns import Columns
from pplleak.density import Model, build
from pplleak.density.search import Decay, Optimizer, maximise
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, diagnostics
from pplleak.progress import ProgressBar, silent


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    starts: int = 30,
    steps: int = 1500,
    lr: float = 0.06,
    optimizer: Optimizer = "signed_adam",
    decay: Decay = "none",
) -> Posterior:
    """The pooled ensemble as a posterior of one draw.

    Args:
        starts: members of the ensemble, all climbed in one batch.
        steps: optimisation steps.
        lr: first learning rate.
        optimizer: adam; signed_adam, on the signs of the slopes; lbfgs.
        decay: of Adam's learning rate: cosine to zero, step, exponential, none.
    """
    require_positive(starts=starts, steps=steps, lr=lr)
    pyro.set_rng_seed(seed)
    density = build(model, client, observed)
    found = maximise(density, starts=starts, steps=steps, lr=lr, optimizer=optimizer, decay=decay, progress=progress)
    x, y = (t.cpu().numpy()[:, None] for t in density.images(found.z))
    labels = None if observed.labels is None else observed.labels.cpu().numpy()
    x, y = diagnostics.relabelled(x, y, x[0, 0], labels)
    pooled = np.median(x[:, 0], 0)
    reasons = [f"interrupted after {len(found.curve)} of {steps} steps"] if found.interrupted else []
    return Posterior(
        x=pooled[None, None],
        y=y[:1],
        mode=pooled,
        kind="point",
        stats={"lp": found.value[None, :1].cpu().numpy()},
        curves={"log_density": found.curve.cpu().numpy()},
        reasons=tuple(reasons),
        attrs={
            "closed_form": "a pooled ensemble",
            "entropy": None if client.columns is None else entropies(x[:, 0], client.columns).round(4).tolist(),
            "starts_log_density": found.value.tolist(),
        },
        g=observed.g.cpu().numpy(),
    )


def entropies(x: np.ndarray, columns: Columns) -> np.ndarray:
    """Of every cell of an ensemble x (starts, batch, width), (batch, C)."""
    made = []
    for column in columns.varying:
        start = columns.starts[column.name]
        block = x[..., start : start + column.width]
        if column.kind == "categorical":
            p = np.clip(np.median(block, 0), 1e-9, None)
            p = p / p.sum(-1, keepdims=True)
            made.append(-(p * np.log(p)).sum(-1) / math.log(max(2, column.width)))
        else:
            made.append(0.5 + 0.5 * np.log(2 * math.pi * np.maximum(block[..., 0].var(0), 1e-12)))
    return np.stack(made, -1)


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
