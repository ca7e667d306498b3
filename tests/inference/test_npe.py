"""NPE: exact after correction where the posterior is known, calibrated over the prior, reused, and honest where it is
not what it was trained for."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LIMIT, assert_frequencies, assert_moments, misfit, observe, tiny
from safetensors.torch import save_file
from scenes import from_data

from pplleak import programs
from pplleak.density import Density, build, estimator, predictive
from pplleak.density.resampling import resample
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import npe
from pplleak.models import logistic
from pplleak.posterior import Posterior, diagnostics
from pplleak.studies.attack.attack import believe
from pplleak.studies.calibration import uniformity

FEW: dict[str, Any] = {"simulations": 2000, "epochs": 2, "hidden": 16}
APART: dict[str, Any] = {"draws": 150}  # of 4000 proposals: few of them are picked twice, and draws count as they are
SIGMA, RANKED = 0.3, 99


def case(sigma: float = SIGMA, *, zero: bool = True, known: bool = True) -> tuple[Any, Observation, Density]:
    """Softmax regression on 2 x 2 pixels: with zero weights its posterior is exactly Gaussian, without skewed."""
    client = tiny("linear", classes=3 if zero else 2, zero=zero)
    shared = replace(observe(client, sigma, known=known), client=client)
    if not known:  # between what the two labels would share
        u = [client.update(torch.full((1, 1, 2, 2), 0.6, dtype=torch.float64), torch.tensor([k])) for k in range(2)]
        shared = replace(shared, g=0.42 * u[0].materialise() + 0.58 * u[1].materialise())
    model = functools.partial(logistic.model, sigma=sigma)
    return model, shared, build(model, client, shared)


def attacked(model: Any, shared: Observation, **settings: Any) -> Posterior:
    return npe.run(model, shared, shared.client, **{**FEW, **settings})


@functools.cache
def learnt(sigma: float = SIGMA) -> estimator.Estimator:
    torch.manual_seed(0)
    return npe.trained(case(sigma)[2], "", features=8, latents=4, **FEW)[0]


@pytest.mark.parametrize("zero", [True, False], ids=["gaussian", "skewed"])
def test_corrected_draws_have_the_exact_means_and_sds(zero: bool) -> None:
    model, shared, _ = case(zero=zero)
    found = attacked(model, shared, **APART)
    exact = logistic.exact_posterior(shared.client, shared, sigma=SIGMA)
    assert_moments(found.x.reshape(*found.x.shape[:2], -1).astype(np.float64), exact.mean(), exact.sd())
    assert found.kind == "approximation" and found.converged, found.doubts


def test_corrected_draws_have_the_exact_label_probabilities() -> None:
    model, shared, _ = case(zero=False, known=False)
    exact = logistic.exact_posterior(shared.client, shared, sigma=SIGMA)
    assert 0.1 < float(exact.label_probabilities(2)[0]) < 0.4
    assert_frequencies(attacked(model, shared, **APART).y[..., 0], exact.label_probabilities(2))


# -- calibration -----------------------------------------------------------------------------------------------------


def ranks(q: estimator.Estimator, corrected: bool, truths: int = 60) -> np.ndarray:
    """u (truths, quantities) of latents and their norm, uniform where the posteriors are right, over draws of the
    program at SIGMA (Talts et al. 2018)."""
    density = case()[2]
    torch.manual_seed(1)
    z, g, _ = predictive.simulate(density, truths)
    made = []
    for truth, shared in zip(z, g, strict=True):
        found = npe.weighed(
            replace(density, observed=replace(density.observed, g=shared)), q, 400, 4 if corrected else 1
        )
        if corrected:
            drawn = found.z[resample(found.log_weights[None])[0][torch.randperm(400)[:RANKED]]]
        else:
            drawn = found.z[:RANKED]
        both = torch.cat([torch.cat([truth[None], drawn]), torch.cat([truth[None], drawn]).norm(dim=1)[:, None]], 1)
        made.append(((both[1:] < both[0]).sum(0) + torch.rand(both.shape[1])) / (RANKED + 1))
    return torch.stack(made).double().numpy()


@pytest.mark.slow
def test_over_draws_of_the_program_it_is_calibrated_and_one_of_another_noise_only_after_correction() -> None:
    """The twin learnt at a third of the noise, and is too sure; weighed, it is as right as the other."""
    other = learnt(SIGMA / 3)
    assert uniformity.p_values(ranks(learnt(), corrected=False)).min() > 0.001
    assert uniformity.p_values(ranks(other, corrected=False)).min() < 1e-6
    assert uniformity.p_values(ranks(other, corrected=True)).min() > 0.001


@pytest.mark.slow
def test_what_the_network_says_of_another_noise_is_not_the_posterior_and_khat_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shared, _ = case()
    exact = logistic.exact_posterior(shared.client, shared, sigma=SIGMA)
    sure = narrow(learnt())
    monkeypatch.setattr(npe, "trained", lambda *a, **k: (sure, False))
    found = attacked(model, shared, rounds=0, kept=str(tmp_path / "narrow.safetensors"))
    assert misfit(found.x.reshape(*found.x.shape[:2], -1).astype(np.float64), exact.mean(), exact.sd()) > LIMIT
    assert found.khat is not None and found.khat > 0.7 and not found.converged


def narrow(q: estimator.Estimator) -> estimator.Estimator:
    return replace(q, factor=q.factor / 3)


# -- what it learns ---------------------------------------------------------------------------------------------------


def of_digits(**more: Any) -> Density:
    shared = from_data(network="linear", dtype="float64", **more)
    return build(believe(programs.load("models", "optimal"), shared), shared.client, shared)


def test_the_coordinates_that_g_tells_of_are_those_of_the_fisher_information() -> None:
    """Of zero weights g = δ xᵀ + noise, whatever z: H = ‖δ‖² Fᵀ F / σ² for x = mean + F z, the same at every z."""
    density = of_digits(sigma=1.0)
    torch.manual_seed(0)
    found = predictive.informed(density, 64, 0.1)
    assert 3 < found.count < 40 and found.missed <= 0.1
    z = torch.eye(64, dtype=torch.float64)
    x, y = density.images(torch.cat([z, 0 * z[:1]]))
    u = density.client.update(x, y).materialise()
    jacobian = (u[:-1] - u[-1:]).mT
    exact = torch.linalg.eigvalsh(jacobian.mT @ jacobian).flip(0)
    assert found.missed == pytest.approx(0.5 * float(exact[found.count :].sum()), rel=0.6)
    along = found.directions[:, : found.count]
    left = 0.5 * float(jacobian.square().sum() - (jacobian @ along).square().sum())
    assert left < 2 * 0.5 * float(exact[found.count :].sum()) and left < 0.06 * 0.5 * float(exact.sum())
    assert predictive.informed(density, 2, 0.1).count == 2 and predictive.informed(density, 2, 0.1).missed > 0.1


def test_the_sketch_looks_where_updates_differ_and_not_where_the_noise_does() -> None:
    density = of_digits(sigma=0.3)
    torch.manual_seed(0)
    sketch, (_, _, u) = predictive.sketch(density, 4), predictive.simulate(density, 500)
    centred = u - u.mean(0)
    share = float((centred @ sketch.basis).square().sum() / centred.square().sum())
    best = float(torch.linalg.svdvals(centred)[:4].square().sum() / centred.square().sum())
    assert 0.95 * best < share <= best * (1 + 1e-9)


# -- kept and reused ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_estimator_is_kept_and_serves_other_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shared, _ = case()
    path = str(tmp_path / "q.safetensors")
    first = attacked(model, shared, kept=path)
    monkeypatch.setattr(npe, "trained", lambda *a, **k: pytest.fail("it learns once more"))
    assert np.array_equal(attacked(model, shared, kept=path).x, first.x)
    assert attacked(model, replace(shared, g=shared.g + 0.1), kept=path).khat is not None
    weaker = functools.partial(logistic.model, sigma=2 * SIGMA)
    for other in ((weaker, shared), (model, replace(shared, labels=(shared.labels + 1) % 3))):  # type: ignore[operator]
        with pytest.raises(BadInput, match="was trained for another model, client, noise, labels or settings"):
            attacked(*other, kept=path)
    with pytest.raises(BadInput, match="settings"):
        attacked(model, shared, kept=path, epochs=3)


def test_a_file_that_is_no_estimator_is_refused(tmp_path: Path) -> None:
    model, shared, _ = case()
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match="holds no estimator"):
        attacked(model, shared, kept=str(tmp_path / "x.safetensors"))


def test_directions_that_are_bent_and_a_factor_that_is_no_triangle_are_refused(tmp_path: Path) -> None:
    """The weights would be wrong, and nothing would show it."""
    q, path = replace(learnt(), mark="m"), tmp_path / "q.safetensors"
    for bent in (replace(q, informed=replace(q.informed, directions=2 * q.informed.directions)),
                 replace(q, factor=q.factor + q.factor.mT)):  # fmt: skip
        estimator.save(bent, path)
        with pytest.raises(BadInput, match="not orthonormal, or its factor is no triangle"):
            estimator.load(path, "m", case()[1].g, 4)


def test_the_density_of_an_estimators_draws_is_the_one_it_says() -> None:
    """log |∂z/∂v| against the Jacobian itself, of a flow that is not the identity."""
    q, g = learnt(), case()[1].g
    torch.manual_seed(0)
    flow = estimator.couplings(4, 16).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    bent, v = replace(q, flow=flow), torch.randn(4, dtype=torch.float64)
    step = 1e-6 * torch.eye(4, dtype=torch.float64)
    jacobian = (bent.decode(v + step, g)[0] - bent.decode(v - step, g)[0]) / 2e-6
    assert float(bent.decode(v[None], g)[1]) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-5)
    assert abs(float(bent.decode(v[None], g)[1]) - float(q.decode(v[None], g)[1])) > 0.01


def test_smoothing_touches_the_largest_weights_alone() -> None:
    log_w = 3 * np.random.default_rng(0).normal(size=2000)
    smooth, order = diagnostics.smoothed(log_w), np.argsort(log_w)
    apart = (smooth - log_w)[order]
    assert np.ptp(apart[:1500]) < 1e-9 < np.ptp(apart) and np.logaddexp.reduce(smooth) == pytest.approx(0.0, abs=1e-9)
    assert np.corrcoef(smooth, log_w)[0, 1] > 0.99


def test_ctrl_c_takes_what_has_been_learnt_and_keeps_no_file(tmp_path: Path) -> None:
    def stopped(what: str, steps: int) -> Any:
        yield 0
        if what == "learning":
            raise KeyboardInterrupt
        yield from range(1, steps)

    model, shared, _ = case()
    path = tmp_path / "q.safetensors"
    assert attacked(model, shared, kept=str(path), progress=stopped).interrupted and not path.exists()


def test_what_it_cannot_learn_is_refused() -> None:
    shared = from_data(settings={"widths": (4,)})
    smooth = believe(programs.load("models", "optimal"), shared, {"prior": "tv"})
    with pytest.raises(BadInput, match="known only up to its factor"):
        npe.run(smooth, shared, shared.client, **FEW)
    model, own, _ = case()
    with pytest.raises(BadInput, match=r"is not Normal\(0, I\), so that none of them can be left"):
        attacked(model, own, latents=2)
    with pytest.raises(BadInput, match="simulations must be at least 100, not 5"):
        attacked(model, own, simulations=5)
    with pytest.raises(BadInput, match="rounds must not be negative"):
        attacked(model, own, rounds=-1)


@pytest.mark.slow
def test_a_network_with_kinks_is_attacked_as_it_is() -> None:
    shared = from_data(settings={"widths": (16,), "activation": "relu"}, sigma=0.5)
    found = npe.run(believe(programs.load("models", "optimal"), shared), shared, shared.client, **FEW)
    assert found.converged, found.doubts
