"""Surrogates: near the client's density away from its kinks, never at them, and labelled wherever a person looks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import run
from conftest import batch_of, observe, own, tiny
from matplotlib.text import Text
from rich.console import Console
from scenes import from_data, known
from torch import nn

from pplleak import density
from pplleak.client import Client
from pplleak.density import Density
from pplleak.density.surrogate import Surrogate, believed, smoothed
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import hmc, laplace
from pplleak.models import logistic
from pplleak.posterior import Posterior
from pplleak.studies.attack import report

SIGMA = 0.1
MODEL = functools.partial(logistic.model, sigma=SIGMA)
SHAPE = (1, 2, 2)
kinked = pytest.mark.parametrize("activation", ["relu", "leaky_relu"])


def built(client: Client, observed: Observation) -> Density:
    return density.build(MODEL, client, observed)


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(len(x), -1)


# -- the density ---------------------------------------------------------------------------------------------------


@kinked
@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_away_from_the_kinks_the_surrogates_density_becomes_the_clients(network: str, activation: str) -> None:
    if network == "mlp":
        client = tiny(activation=activation, widths=(4, 3))
    else:
        client = tiny("convnet", (1, 4, 4), channels=(2,), width=3, activation=activation)
    observed = observe(client, SIGMA)
    z = flat(batch_of(client, (20,), seed=3)[0])
    exact = built(client, observed)(z)
    gaps = [float((built(smoothed(client, b), observed)(z) - exact).abs().max()) for b in (1e1, 1e3, 1e6)]
    assert gaps[0] > 0.01 and gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-9 * float(exact.abs().max())


def test_at_a_kink_it_never_does() -> None:
    """The wrong twin of the test above: where a unit's input is 0, relu' is 0 and softplus' is ½, at any β."""
    client = tiny(activation="relu")
    weight, bias = client.network[1].weight, client.network[1].bias
    z = flat(batch_of(client, (1,), seed=3)[0])
    z = z - (weight[0] @ z[0] + bias[0]) / weight[0].square().sum() * weight[0]
    observed = observe(client, SIGMA)
    exact = built(client, observed)(z)
    assert float((built(smoothed(client, 1e6), observed)(z) - exact).abs()) > 1e-3


@kinked
def test_a_surrogate_is_a_smooth_client_with_the_same_weights_and_leaves_the_client_alone(activation: str) -> None:
    client = tiny(activation=activation)
    surrogate = smoothed(client, 10)
    assert surrogate.kinks == () and client.kinks and surrogate.exact is client
    assert surrogate.layers == client.layers and surrogate.lazy
    for name, p in surrogate.parameters.items():
        assert torch.equal(p, client.parameters[name]) and not p.requires_grad
    target = known(client, observe(client, SIGMA))
    assert believed(target, 10).g is target.g


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.layer(x.flatten(1)))


def pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3))


@pytest.mark.parametrize(
    ("client", "beta", "said"),
    [
        (lambda: tiny(), 10, "is smooth: there is nothing"),
        (lambda: tiny(activation="relu"), -1, "surrogate must be a positive number"),
        (lambda: own(pooled, SHAPE), 10, "max_pool2d_with_indices"),
        (lambda: own(Functional, SHAPE), 10, "another kind (relu)"),
    ],
    ids=["smooth", "negative", "max pooling", "functional"],
)
def test_what_has_no_surrogate_is_told_so(client: Callable[[], Client], beta: float, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        smoothed(client(), beta)
    assert said in str(refused.value)


# -- the label -----------------------------------------------------------------------------------------------------


def pair(inference: object, **settings: int) -> tuple[Posterior, Posterior, Density, Density]:
    """The same run on a surrogate and on a client that simply has a softplus; the densities of client and surrogate."""
    client = tiny(activation="relu")
    observed, surrogate = observe(client, SIGMA), smoothed(client, 20)
    network = surrogate.network
    for p in network.parameters():
        p.requires_grad_()
    plain = Client(network, client.input_shape, client.num_classes)
    a, b = (inference.run(MODEL, observed, c, starts=2, steps=20, **settings) for c in (surrogate, plain))  # type: ignore[attr-defined]
    return a, b, built(client, observed), built(surrogate, observed)


def correction(posterior: Posterior, exact: Density, smooth: Density) -> np.ndarray:
    z = flat(torch.as_tensor(posterior.draws))
    return (exact(z) - smooth(z)).numpy()


@pytest.mark.slow
def test_chains_on_a_surrogate_are_labelled_and_weighed_by_the_client() -> None:
    found, plain, exact, smooth = pair(hmc, chains=8, draws=20, warmup=20)
    assert np.array_equal(found.x, plain.x)
    assert (plain.kind, plain.approximation, plain.log_weights) == ("sampler", "", None)
    assert found.kind == "approximate sampler" and "softplus (β = 20)" in found.approximation
    assert found.log_weights is not None and found.log_weights.std() > 0.01
    np.testing.assert_allclose(found.log_weights, correction(found, exact, smooth), rtol=0, atol=1e-8)
    assert found.rhat_max == plain.rhat_max and found.khat is not None


def test_a_fitted_family_on_a_surrogate_is_weighed_against_the_client_too() -> None:
    found, plain, exact, smooth = pair(laplace, chains=4, draws=30)
    assert found.kind == "approximation" and "softplus" in found.approximation
    assert found.log_weights is not None and plain.log_weights is not None
    expected = correction(found, exact, smooth)
    np.testing.assert_allclose(found.log_weights - plain.log_weights, expected, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_the_label_is_kept_in_the_file(tmp_path: Path) -> None:
    found = pair(hmc, chains=2, draws=5, warmup=4)[0]
    found.save(tmp_path / "p.nc")
    again = Posterior.load(tmp_path / "p.nc")
    assert (again.kind, again.approximation) == (found.kind, found.approximation)


@pytest.mark.slow
def test_table_picture_json_and_file_say_approximate_and_never_posterior(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["attack", "--network.activation", "relu", "--surrogate", "100", "--out", str(tmp_path)]
    tiny_hmc = [f"--inference.{s}" for s in ("chains=2", "draws=16", "warmup=4", "starts=2", "steps=5")]
    assert run([*argv, *tiny_hmc]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["inference"] == "hmc" and summary["kind"] == "approximate sampler"
    assert "softplus (β = 100)" in summary["approximation"] and summary["khat"] is not None
    found = Posterior.load(tmp_path / "posterior.nc")
    assert found.attrs["surrogate"] == 100
    drawn = [t.get_text() for t in report.picture(found, summary).findobj(Text)]
    console = Console(width=200, record=True)
    console.print(report.table(summary))
    for said in (*drawn, console.export_text()):
        assert "posterior" not in said.lower() or "misses the posterior" in said
    for shown in (" ".join(drawn), " ".join(capsys.readouterr().out.split())):
        assert "approximate" in shown and "softplus (β = 100)" in shown.replace("│ │ ", "")
    assert isinstance(believed(from_data(settings={"activation": "relu"}), 5).client, Surrogate)


def test_a_verdict_on_a_surrogates_chains_asks_for_both_r_hat_and_k_hat() -> None:
    told = {
        "approximation": "", "doubts_of_fit": [], "doubts": [], "converged": True, "kind": "approximate sampler",
        "fits": None, "sd_ratio": None, "rhat_max": 1.004, "ess_min": 900.0,
    }  # fmt: skip
    weighed, alone = (report.verdict({**told, "khat": khat}) for khat in (0.41, None))
    assert "R-hat 1.004" in weighed and "k-hat 0.41" in weighed and not weighed.startswith("converged")
    assert "R-hat 1.004" in alone and "k-hat" not in alone
