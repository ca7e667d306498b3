"""Tail ESS, BFMI, acceptance, ELBO and restarts: what they are, and what is said where they fail."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import arviz
import numpy as np
import pytest
from arviz_stats.base import array_stats
from rich.console import Console

from pplleak.posterior import Posterior
from pplleak.studies.attack import report


def made(x: np.ndarray | None = None, **changes: Any) -> Posterior:
    generator = np.random.default_rng(0)
    x = 0.5 + 0.1 * generator.normal(size=(4, 500, 1, 1, 2, 2)) if x is None else x
    return Posterior(x, np.zeros((*x.shape[:2], 1)), x[0, 0], **{"kind": "sampler", **changes})


def energies(memory: float) -> np.ndarray:
    """Autoregressive energies: BFMI is 2 (1 − memory)."""
    noise = np.random.default_rng(1).normal(size=(8, 4000))
    energy = noise.copy()
    for t in range(1, noise.shape[1]):
        energy[:, t] = memory * energy[:, t - 1] + np.sqrt(1 - memory**2) * noise[:, t]
    return energy


def elbo(slope: float) -> np.ndarray:
    return np.random.default_rng(2).normal(size=300) + slope * np.arange(300)


def heavy() -> np.ndarray:
    """Chains that agree on their middle, where they mix, and visit the tail once a long while."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(4, 500, 1, 1, 2, 2))
    x[:, 200:260] += 6
    return x


def test_tail_ess_is_arvizs_and_the_smallest() -> None:
    posterior = made()
    expected = min(
        float(arviz.ess(posterior.x[..., 0, 0, i, j], method="tail", prob=(0.05, 0.95))) for i in (0, 1) for j in (0, 1)
    )
    assert posterior.health.ess_tail == pytest.approx(expected)


@pytest.mark.parametrize("memory", [0.0, 0.95])
def test_bfmi_is_that_of_the_energies(memory: float) -> None:
    found = made(stats={"energy": energies(memory)}).health.bfmi
    assert found == pytest.approx(2 * (1 - memory), abs=0.05)
    assert found == pytest.approx(float(np.mean(array_stats.bfmi(energies(memory)))), rel=1e-12)


def test_restarts_are_spread_as_their_heights_and_their_images() -> None:
    attrs = {"starts_log_density": [3.0, 1.0], "starts_rms": [0.0, 0.3, 0.4]}
    health = made(kind="point", attrs=attrs).health
    assert (health.restarts_nats, health.restarts_rms) == (1.0, pytest.approx(np.sqrt((0.09 + 0.16) / 2)))


FAILS: dict[str, tuple[dict[str, Any], str]] = {
    "tails": ({"x": heavy()}, r"in the tails: ESS \d+ < 400"),
    "energy": ({"stats": {"energy": energies(0.95)}}, r"BFMI 0\.1\d? < 0\.3"),
    "elbo": ({"kind": "approximation", "curves": {"elbo": elbo(0.05)}}, r"ELBO still rises: by [23]\.\d nats"),
}
HOLDS: dict[str, dict[str, Any]] = {
    "tails": {},
    "energy": {"stats": {"energy": energies(0.5)}},
    "elbo": {"kind": "approximation", "curves": {"elbo": elbo(0.0)}, "log_weights": np.zeros(2000)},
}


@pytest.mark.parametrize("what", FAILS)
def test_a_failed_threshold_is_marked_in_json_on_the_picture_and_on_the_terminal(what: str) -> None:
    changes, said = FAILS[what]
    summary = made(**changes).summary
    written = json.loads(json.dumps(summary, allow_nan=False))
    assert written["converged"] is False
    console = Console(width=500, file=io.StringIO())
    console.print(report.table(summary))
    drawn = " ".join(t.get_text() for t in report.picture(made(**changes), summary).texts)
    for place in (" ".join(written["doubts"]), console.file.getvalue()):
        assert re.search(said, place), place
    assert "did not converge" in drawn


@pytest.mark.parametrize("what", HOLDS)
def test_a_met_threshold_is_not(what: str) -> None:
    assert made(**HOLDS[what]).doubts == ()
