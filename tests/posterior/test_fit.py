"""The fit on draws from the model: p-values that are what they say, sound inputs that stay silent, wrong twins doubted.

(x, g) with x a draw from p(x | g) has the law of (truth, g), so that the truth itself stands for a posterior draw.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny
from scipy.special import chdtrc

from pplleak import channels
from pplleak.channels import Channel
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.posterior.fit_words import P
from pplleak.posterior.misfit import Misfit
from pplleak.settings import Named
from pplleak.studies.calibration.uniformity import p_values

DRAWS = 200
CHANNELS: dict[str, tuple[dict[str, float], dict[str, float]]] = {  # and a wrong twin of each
    "gaussian": ({"sigma": 0.05}, {"sigma": 0.1}),
    "laplace": ({"sigma": 0.05}, {"sigma": 0.15}),
    "dpsgd": ({"noise_multiplier": 0.2, "clip": 0.3}, {"noise_multiplier": 0.4, "clip": 0.3}),
    "quantised": ({"sigma": 0.05, "step": 0.1}, {"sigma": 0.2, "step": 0.1}),
    "sign": ({"sigma": 0.05}, {"sigma": 0.001}),
    "onebit": ({"sigma": 0.05, "rounds": 0}, {"sigma": 0.001, "rounds": 0}),
    "autoencoded": ({"sigma": 0.05, "code": 6, "simulated": 60}, {"sigma": 0.01, "code": 6, "simulated": 60}),
}


CLIENT = tiny()
PUBLIC = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(1))


def law(x: torch.Tensor, y: torch.Tensor, name: str, settings: dict[str, float]) -> Channel:
    update = CLIENT.update(x.expand(2, *x.shape), y.expand(2, *y.shape))  # a fit looks at two equal chains
    return channels.make(Named(name, settings), update, CLIENT, 1, PUBLIC)


def misfits(name: str, believed: dict[str, float], count: int = DRAWS) -> list[dict[str, float]]:
    """Of `count` truths with gradients of their own, to an adversary who believes in such a channel."""
    settings = CHANNELS[name][0]
    found = []
    for k in range(count):
        torch.manual_seed(k)
        x, y = 0.5 + 0.3 * torch.randn(1, 1, 2, 2, dtype=torch.float64), torch.randint(3, (1,))
        g = law(x, y, name, settings).sample()[0]
        observed = Observation(g, 1, y, CLIENT, Protection(channel=Named(name, believed)))
        found.append(Misfit(observed, [law(x, y, name, believed)], 0).misfit())
    return found


def uniform(found: list[dict[str, float]]) -> float:
    """P-value that χ² of all entries is that of χ²(D)."""
    size = CLIENT.update_size
    u = np.array([chdtrc(size, f["chi2_per_entry"] * size) for f in found])
    return float(p_values(u[:, None])[0])


@pytest.mark.slow
def test_p_values_of_gaussian_noise_are_uniform() -> None:
    assert uniform(misfits("gaussian", CHANNELS["gaussian"][0])) > 1e-3
    assert uniform(misfits("gaussian", {"sigma": 1.1 * 0.05})) < 1e-6  # the twin is off by a tenth of σ


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANNELS)
def test_sound_inputs_stay_silent_and_wrong_twins_do_not(name: str) -> None:
    counts = (
        (DRAWS, DRAWS) if name in ("gaussian", "dpsgd") else (12 if name == "onebit" else 30, 5)
    )  # replicates: slow
    right, wrong = (np.array([f["p"] < P for f in misfits(name, *b)]) for b in zip(CHANNELS[name], counts, strict=True))
    assert right.sum() <= 1 and wrong.mean() >= 0.1


@pytest.mark.slow
def test_the_looks_are_accounted_for() -> None:
    """P-values of the worst of five looks are no smaller than they say, and of one parameter alone they would be."""
    found = misfits("gaussian", CHANNELS["gaussian"][0])
    worst = np.array([f["p"] for f in found])
    looks = 1 + len(CLIENT.layers)
    for level in (0.01, 0.05, 0.2):
        error = np.sqrt(level * (1 - level) / DRAWS)
        assert (worst < level).mean() <= level + 4 * error
    assert (worst / looks < 0.05).mean() > 0.05 + 4 * np.sqrt(0.05 * 0.95 / DRAWS)


def test_a_misfit_of_one_layer_is_seen_where_it_is() -> None:
    torch.manual_seed(0)
    x, y = 0.5 + 0.3 * torch.randn(1, 1, 2, 2, dtype=torch.float64), torch.tensor([1])
    settings = CHANNELS["gaussian"][0]
    g = law(x, y, "gaussian", settings).sample()[0]
    name, where = list(CLIENT.slices.items())[-1]
    g[where] += 0.5
    observed = replace(Observation(g, 1, y, CLIENT), protection=Protection(channel=Named("gaussian", settings)))
    found = Misfit(observed, [law(x, y, "gaussian", settings)], 0).misfit()
    assert max(found["layers"], key=lambda n: found["layers"][n]) == name and found["p"] < P
