"""Bits: the linear-Gaussian model, where all is known, and what must be refused."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from command_line import one_line, run
from conftest import LIMIT, batch_of, observe, tiny
from scenes import from_data

from pplleak import channels, density, programs
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.models import linear_gaussian, logistic, optimal
from pplleak.posterior import information
from pplleak.posterior.information import LN2
from pplleak.studies.attack import attack
from pplleak.studies.risk import risk

SIGMA = 0.3
MODEL = functools.partial(linear_gaussian.model, sigma=SIGMA)


def linear(size: int = 1, known: bool = True) -> tuple[Client, Observation]:
    client = tiny("linear")
    return client, observe(client, SIGMA, size=size, known=known)


def normal_of_g(client: Client, observed: Observation, sigma: float) -> torch.distributions.MultivariateNormal:
    """p(g | y), by the entries of the update at unit vectors of x: the slow, obvious way."""
    size, n = observed.batch_size, observed.batch_size * 4
    root = torch.block_diag(*[linear_gaussian.factor(client, 0.3, 3.0)] * size)
    assert observed.labels is not None

    def u(x: torch.Tensor) -> torch.Tensor:
        return client.materialised(x.reshape(-1, size, 1, 2, 2), observed.labels.expand(len(x), -1)).materialise()

    base = u(torch.zeros(1, n, dtype=torch.float64))[0]
    slopes = (u(torch.eye(n, dtype=torch.float64)) - base).mT
    covariance = slopes @ root @ root.mT @ slopes.mT + sigma**2 * torch.eye(len(base), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(
        base + slopes @ torch.full((n,), 0.5, dtype=torch.float64), covariance
    )


@pytest.mark.parametrize("size", [1, 3])
def test_the_exact_posterior_is_that_of_the_dense_normal_of_x_and_g(size: int) -> None:
    client, observed = linear(size)
    exact = linear_gaussian.exact_posterior(client, observed, sigma=SIGMA)
    law = normal_of_g(client, observed, SIGMA)
    assert exact.log_evidence == pytest.approx(float(law.log_prob(observed.g)), rel=1e-10)
    entropy = len(observed.g) * math.log(2 * math.pi * math.e * SIGMA**2) / 2
    assert exact.mutual_information == pytest.approx(float(law.entropy()) - entropy, rel=1e-9)
    built = density.build(MODEL, client, observed)
    spread = torch.linalg.cholesky(exact.covariance)
    torch.manual_seed(0)  # the density falls off from the mean as the covariance says, in any direction
    root = torch.block_diag(*[linear_gaussian.factor(client, 0.3, 3.0)] * size)
    w = torch.randn(5, len(exact.mean), dtype=torch.float64)
    z = torch.linalg.solve(root, (exact.mean + w @ spread.mT - 0.5).mT).mT
    at_mean = torch.linalg.solve(root, exact.mean - 0.5)[None]
    torch.testing.assert_close(built(z) - built(at_mean), -0.5 * w.square().sum(1), rtol=1e-8, atol=1e-8)


def test_the_exact_posterior_says_where_it_is_not_exact() -> None:
    with pytest.raises(BadInput, match="known labels"):
        linear_gaussian.exact_posterior(*linear(known=False))
    with pytest.raises(BadInput, match="affine"):
        linear_gaussian.exact_posterior(tiny(), observe(tiny(), SIGMA))


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["laplace", "hmc"])
def test_the_evidence_of_an_inference_is_the_exact_one(inference: str) -> None:
    client, observed = linear()
    exact = linear_gaussian.exact_posterior(client, observed, sigma=SIGMA)
    settings = {"starts": 2, "steps": 20, "chains": 8, "draws": 40, **({"warmup": 20} if inference == "hmc" else {})}
    found = programs.load("inference", inference)(MODEL, observed, client, **settings)
    evidence = information.evidence(found, density.build(MODEL, client, observed))
    assert evidence is not None and evidence.value == pytest.approx(exact.log_evidence, abs=1e-6)


def quadratic(width: float) -> tuple[density.Density, torch.Tensor, torch.Tensor]:
    """Draws of a posterior that is not Gaussian: two labels that were not shared; `width` times too wide."""
    client = tiny("linear", classes=2, zero=False)
    observed = observe(client, SIGMA, known=False)
    built = density.build(functools.partial(logistic.model, sigma=SIGMA), client, observed)
    exact = logistic.exact_posterior(client, observed, sigma=SIGMA)
    draws = exact.sample(8000, torch.Generator().manual_seed(0))
    draws = exact.mean() + width * (draws - exact.mean())
    return built, draws.unflatten(0, (80, 100)), torch.tensor(exact.log_evidence)


def test_bridge_sampling_is_right_for_a_rough_q_and_wrong_for_wrong_draws() -> None:
    for width, right in ((1.0, True), (0.75, False)):
        built, z, exact = quadratic(width)
        lp = built(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        spread = z.flatten(0, 1)
        root = 1.4 * torch.linalg.cholesky(torch.cov(spread.mT))
        found = information.bridge(built, z, lp, spread.mean(0) + 0.5 * spread.std(0), root, proposals=8000)
        assert found.se is not None and found.se < 0.05
        assert (abs(found.value - float(exact)) < LIMIT * found.se) is right


def test_a_fitted_familys_evidence_is_its_mean_weight_with_its_standard_error() -> None:
    generator = np.random.default_rng(0)
    log_w = 3.0 + 0.5 * generator.standard_normal((400, 2000)) - 0.125  # log-normal, of mean e³
    found = [information._log_mean(w) for w in log_w]
    errors = np.array([f.value - 3.0 for f in found])
    assert abs(errors.mean()) < LIMIT * errors.std() / 20
    assert np.mean([f.se or 0 for f in found]) == pytest.approx(errors.std(), rel=0.15)


# -- mutual information ----------------------------------------------------------------------------------------------

DRAWS, LOW_NOISE = 24, 0.01


@functools.cache
def gained(seed: int) -> tuple[float, Observation]:
    """Bits that one gradient gives of the image that was drawn for it, and what was shared."""
    base = from_data("digits", network="linear", sigma=LOW_NOISE, dtype="float64")
    quick = {"starts": 1, "steps": 1, "chains": 1, "draws": 30}  # one Newton step ends at the mode of a Gaussian
    target = risk.from_model(base, "linear_gaussian", {}, seed)
    return attack.attack(target, "linear_gaussian", "laplace", settings=quick, seed=seed).attrs["bits"], target


@pytest.mark.slow
def test_the_mutual_information_is_the_closed_form_within_two_percent() -> None:
    found, target = information.mutual_information([gained(k)[0] for k in range(DRAWS)]), gained(0)[1]
    assert found.se is not None and found.se < 0.01 * found.value

    def agrees(exact: float) -> bool:
        assert found.se is not None
        return abs(found.value - exact) < min(0.02 * exact, LIMIT * found.se)

    exact = functools.partial(linear_gaussian.exact_posterior, target.client, target)
    assert agrees(exact(sigma=LOW_NOISE).mutual_information / LN2)
    assert not agrees(exact(sigma=1.25 * LOW_NOISE).mutual_information / LN2), "a quarter more noise passes"


def test_the_gain_at_another_image_is_a_loss() -> None:
    bits, target = gained(0)
    model = attack.believe(linear_gaussian.model, target)
    posterior = programs.load("inference", "laplace")(model, target, target.client, starts=1, steps=1, draws=10)
    ask = functools.partial(information.gain, model, target, target.client, posterior)
    assert target.truth is not None
    assert ask(target.truth).value == pytest.approx(bits, abs=1e-6)
    assert ask(1 - target.truth).value < 0 < ask(target.truth).value


def test_labels_that_were_not_shared_are_summed_out() -> None:
    client, observed = linear(size=2, known=False)
    x, _ = batch_of(client, size=2)
    found = information.log_likelihood(density.build(MODEL, client, observed), x)
    each = [channels.Gaussian(client.update(x, torch.tensor([a, b])), SIGMA).log_prob(observed.g)
            for a in range(3) for b in range(3)]  # fmt: skip
    assert found == pytest.approx(float(torch.stack(each).logsumexp(0)) - 2 * math.log(3), rel=1e-10)


def test_a_latent_models_x_is_put_in_place_of_its_own() -> None:
    client, observed = linear()
    public = torch.rand(30, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    x, _ = batch_of(client, seed=5)
    built = density.build(functools.partial(optimal.model, sigma=SIGMA, reference=public), client, observed)
    expected = channels.Gaussian(client.update(x, observed.labels), SIGMA).log_prob(observed.g)
    assert information.log_likelihood(built, x) == pytest.approx(float(expected), rel=1e-12)


def test_what_has_no_evidence_or_no_likelihood_is_refused() -> None:
    client, observed = linear()
    x, _ = batch_of(client)
    point = programs.load("inference", "map")(MODEL, observed, client, starts=1, steps=2)
    with pytest.raises(BadInput, match="gives no evidence"):
        information.gain(MODEL, observed, client, point, x)
    with pytest.raises(BadInput, match=r"its factor 'tv'.*gmrf"):
        information.log_likelihood(density.build(functools.partial(optimal.model, prior="tv"), client, observed), x)

    def unsure(client: Client, batch_size: int = 1) -> None:
        sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros(1).double(), 1.0).to_event(1))
        x = pyro.sample("x", dist.Normal(torch.zeros(()).double(), 1.0).expand([1, 1, 2, 2]).to_event(4))
        y = pyro.sample("y", client.label_prior(batch_size))
        pyro.sample("g", channels.Gaussian(client.update(x, y), sigma[..., 0]))

    with pytest.raises(BadInput, match="depends on latents beside x"):
        information.log_likelihood(density.build(unsure, client, observed), x)


# -- the command -----------------------------------------------------------------------------------------------------

SMALL = ["--inference.starts", "1", "--inference.steps", "1", "--inference.chains", "1", "--inference.draws", "30"]
QUICK = ["bits", "--network", "linear", "--model", "linear_gaussian", *SMALL]


def test_bits_goes_on_where_it_was_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*QUICK, "--count", "1", "--out", str(tmp_path / "a")]) == 0
    assert run([*QUICK, "--count", "2", "--out", str(tmp_path / "a")]) == 0
    assert "2 draws from the model" in capsys.readouterr().out
    said = json.loads((tmp_path / "a" / "bits.json").read_text())
    assert said["draws"] == 2 and said["mutual_information"] == pytest.approx(
        np.mean([r["bits"] for r in said["rows"]])
    )
    one_line([*QUICK, "--sigma", "0.2", "--out", str(tmp_path / "a")], capsys, "holds a run with sigma = None")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "0"], "--count must be at least 1"),
        (["--prior", "tv"], "cannot be drawn from"),
        (["--inference", "map"], "gives no evidence"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--inference.starts", "1", "--inference.steps", "1"]
    one_line(["bits", "--out", str(tmp_path), *settings, *words], capsys, said)


@pytest.mark.slow
def test_an_attack_says_how_many_bits_and_one_without_a_truth_does_not(tmp_path: Path) -> None:
    quick = ["--inference", "laplace", "--inference.starts", "1", "--inference.steps", "20", "--network", "linear"]
    assert run(["attack", *quick, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["bits"] > 0
    _, target = gained(0)
    settings = {"starts": 1, "steps": 1, "draws": 10}
    found = attack.attack(replace(target, truth=None), "linear_gaussian", "laplace", settings=settings)
    assert found.summary["bits"] is None
