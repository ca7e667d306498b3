"""σ that nobody told: inferred with the image, by every inference that a latent more does not stop."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from command_line import one_line, run
from conftest import LIMIT, assert_moments, misfit, tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

import pplleak as pl
from pplleak import channels, programs
from pplleak.channels._base import MEDIAN, WIDTH
from pplleak.client import Client
from pplleak.client.update import DenseUpdate
from pplleak.density import build
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior
from pplleak.settings import Named
from pplleak.studies.attack.attack import believe, choose
from pplleak.studies.calibration import draws
from pplleak.studies.risk.risk import from_model

SCENE = pl.Scenario(index=3, protection="gaussian:sigma=0.05", network="mlp:widths=(8,)")
SLOPE = torch.randn(9, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
SIGMA = 0.02
QUICK: dict[str, dict[str, int]] = {
    "map": {"starts": 2, "steps": 200},
    "laplace": {"starts": 2, "steps": 200, "chains": 4, "draws": 100},
    "svi": {"starts": 2, "steps": 200, "iterations": 100, "chains": 4, "draws": 100},
    "smc": {},
}


def linear(client: Client, batch_size: int = 1, *, channel: Named) -> Tensor:
    """x ~ Normal(0, I), g | x ~ Normal(A x, σ² I) with nine entries, and σ of the channel."""
    x = pyro.sample("x", dist.Normal(torch.zeros(1, 1, 1, 2, dtype=torch.float64), 1.0).to_event(4))
    pyro.sample("y", client.label_prior(batch_size))
    u = DenseUpdate(x.flatten(-3) @ SLOPE.mT)
    return pyro.sample("g", channels.make(channels.inferred(channel), u, client, batch_size, None))


def exact(g: np.ndarray, median: float = MEDIAN) -> tuple[float, float]:
    """Mean and sd of log σ given g, by quadrature over the evidence Normal(g; 0, A Aᵀ + σ² I)."""
    at = np.linspace(math.log(1e-5), math.log(1e2), 4001)
    values, vectors = np.linalg.eigh((SLOPE @ SLOPE.mT).numpy())
    widths = values.clip(0) + np.exp(2 * at)[:, None]
    log = -0.5 * ((vectors.T @ g) ** 2 / widths + np.log(widths)).sum(1) - 0.5 * ((at - math.log(median)) / WIDTH) ** 2
    weights = np.exp(log - log.max())
    mean = float(weights @ at / weights.sum())
    return mean, math.sqrt(float(weights @ (at - mean) ** 2 / weights.sum()))


@pytest.mark.slow
def test_the_posterior_of_sigma_is_the_exact_one() -> None:
    client = tiny("linear", (1, 1, 2))
    noise = torch.randn(10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    g = SLOPE @ torch.tensor([0.4, -1.1], dtype=torch.float64) + SIGMA * noise[:9]
    observed = Observation(g, labels=torch.tensor([0]), client=client)
    model = functools.partial(linear, channel=Named("gaussian", {"sigma": "infer"}))
    hmc = programs.load("inference", "hmc")
    found: Posterior = hmc(model, observed, client, chains=32, draws=200, warmup=100, starts=4, steps=200)
    drawn = found.latents["log_sigma"][..., None]
    assert_moments(drawn, *exact(g.numpy()))
    assert misfit(drawn, *exact(g.numpy(), median=100 * MEDIAN)) > LIMIT  # a prior that says something else


NOISY = [n for n in channels.names() if any(s.name == "sigma" for s in channels.settings(n))]


@pytest.mark.parametrize("name", sorted({*NOISY} - {"aggregated"}))
def test_every_channel_with_a_sigma_infers_it(name: str) -> None:
    """log p(z, log σ | g) is the density with σ told, plus the prior of log σ."""
    observed = pl.observe(replace(SCENE, protection=f"{name}:sigma=0.05", dtype="float64"))
    model = programs.load("models", "optimal")
    infers = build(believe(model, observed, {"sigma": "infer"}), observed.client, observed)
    z = 0.3 * torch.randn(3, infers.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_sigma = torch.tensor([-4.0, -3.0, -2.0], dtype=torch.float64)
    where = next(s.where for s in infers.sites if s.name == "log_sigma")
    z[:, where] = log_sigma[:, None]
    prior = torch.distributions.Normal(math.log(MEDIAN), WIDTH).log_prob(log_sigma)
    rest = torch.cat([z[:, : where.start], z[:, where.stop :]], 1)
    told = [
        build(believe(model, observed, {"sigma": float(s.exp())}), observed.client, observed)(rest[k : k + 1])[0]
        for k, s in enumerate(log_sigma)
    ]
    torch.testing.assert_close(infers(z), torch.stack(told) + prior, rtol=1e-9, atol=1e-9)


def test_a_sigma_that_cannot_be_told_from_other_clients_is_not_inferred() -> None:
    observed = pl.observe(replace(SCENE, protection="aggregated:sigma=0.05,simulated=30"))
    with pytest.raises(BadInput, match="aggregated needs its sigma to be told"):
        pl.attack(observed, inference="map", beliefs={"sigma": "infer"})


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["map", "laplace", "svi", "smc"])
def test_sigma_comes_back_with_its_uncertainty(inference: str) -> None:
    observed = pl.observe(SCENE)
    found = pl.attack(observed, inference=inference, beliefs={"sigma": "infer"}, settings=QUICK[inference])
    size, summary = observed.client.update_size, found.summary
    assert summary["sigma"] == pytest.approx(0.05, rel=5 / math.sqrt(2 * size))
    if inference == "map":
        assert summary["sigma_interval"] is None
    else:
        low, high = summary["sigma_interval"]
        assert math.log(high / low) == pytest.approx(2 * 1.645 / math.sqrt(2 * size), rel=0.2)
    assert summary["fits"] is True


@pytest.mark.slow
def test_sigma_is_kept_with_the_posterior(tmp_path: Path) -> None:
    found = pl.attack(pl.observe(SCENE), inference="laplace", beliefs={"sigma": "infer"}, settings=QUICK["laplace"])
    found.save(tmp_path / "p.nc")
    again = Posterior.load(tmp_path / "p.nc")
    assert np.array_equal(again.latents["log_sigma"], found.latents["log_sigma"]) and set(again.latents) == {
        "log_sigma"
    }
    assert again.convergence.rhat.shape == (8 * 8 + 2,)  # pixels, log σ, log-density


def test_draws_from_the_model_have_a_sigma_of_their_own() -> None:
    base = pl.observe(SCENE)
    assert base.client is not None
    sigmas = torch.stack([from_model(base, "optimal", {"sigma": "infer"}, k).latents["log_sigma"] for k in range(100)])  # type: ignore[index]
    assert abs(float(sigmas.mean()) - math.log(MEDIAN)) < 5 * WIDTH / math.sqrt(100)
    assert abs(float(sigmas.std()) / WIDTH - 1) < 5 / math.sqrt(200)


@pytest.mark.slow
def test_a_file_may_say_that_its_sigma_is_to_be_inferred(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`observe --gradient --sigma infer`, then `attack`; the same of a file whose σ is wrong, and what cannot be."""
    made, own, out = tmp_path / "o.safetensors", tmp_path / "own.safetensors", tmp_path / "attack"
    assert run(["observe", "--index", "3", "--sigma", "0.05", "--network.widths", "8", "--out", str(made)]) == 0
    save_file(load_file(made), own)
    wrap = ["observe", "--gradient", str(own), "--input-shape", "1", "8", "8", "--network.widths", "8"]
    assert run([*wrap, "--sigma", "infer", "--shared-labels", "6", "--out", str(own)]) == 0
    quick = ["--inference", "map", "--inference.starts", "2", "--inference.steps", "200", "--out", str(out)]
    for words in (["--observed", str(own)], ["--observed", str(made), "--sigma", "infer"]):
        assert run(["attack", *words, *quick]) == 0
        assert 0.045 < pl.Posterior.load(out / "posterior.nc").summary["sigma"] < 0.055
    one_line(["attack", "--sigma", "infer", *quick], capsys, "give sigma a number")
    one_line(["attack", "--observed", str(own), "--model", "l2", *quick], capsys, "take the model optimal")
    one_line(["attack", "--observed", str(own), "--labels", "recovered", *quick], capsys, "whose noise is told")


@pytest.mark.parametrize("inference, network", [("ball", "mlp:widths=(8,)"),
                                                ("refractive", "mlp:widths=(8,),activation=relu")])  # fmt: skip
def test_an_inference_that_needs_sigma_says_so(inference: str, network: str) -> None:
    observed = pl.observe(replace(SCENE, network=network))
    with pytest.raises(BadInput, match="needs the noise to be told"):
        pl.attack(observed, inference=inference, beliefs={"sigma": "infer"})
    if inference == "refractive":  # and is not chosen where nobody named one
        assert choose(observed, "optimal", {"sigma": "infer"})[0] != "refractive"


@pytest.mark.slow
def test_a_calibration_ranks_what_is_known_of_the_image() -> None:
    """log p(g | x) is an integral over σ: the truth has no rank there, and one everywhere else."""
    made = draws.make(pl.observe(SCENE), "optimal", "laplace", 0, beliefs={"sigma": "infer"}, settings=QUICK["laplace"])
    known = dict(zip(draws.QUANTITIES, made.ranks[0, -len(draws.QUANTITIES) :], strict=True))
    assert known["log_likelihood"] == known["log_prior"] == -1
    assert all(0 <= rank <= made.ranked for name, rank in known.items() if not name.startswith("log_"))
