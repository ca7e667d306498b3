"""Priors: their densities are normalised, their draws follow them, and a fitted Gaussian is the fitted one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from conftest import LIMIT, assert_frequencies, assert_moments, chains_of, misfit, quick_fits
from pyro import poutine
from torch import Tensor

from pplleak import priors
from pplleak.errors import BadInput
from pplleak.priors.gaussian import fit_gaussian
from pplleak.priors.labels import Labels
from pplleak.priors.tv import TotalVariation
from pplleak.priors.uniform import uniform
from pplleak.settings import Named

DRAWS = torch.Size([4000])


def correlated_images(count: int = 60) -> Tensor:
    """Images (count, 1, 2, 3) whose pixels go together, one of them constant."""
    images = torch.rand(count, 1, 2, 3, dtype=torch.float64)
    images[..., 1] = (images[..., 0] + images[..., 1]) / 2
    images[..., 0, 2] = 0.25
    return images


def test_uniform_draws_fill_the_box_and_have_its_density() -> None:
    prior = uniform((1, 2, 2), 2)
    draws = prior.sample(DRAWS)
    assert draws.shape == (4000, 2, 1, 2, 2)
    assert_moments(chains_of(draws), torch.full((8,), 0.5), torch.full((8,), 12**-0.5))
    assert torch.equal(prior.log_prob(draws), torch.zeros(4000))
    outside = draws.clone()
    outside[:, 1, 0, 1, 1] += 1
    assert not bool(prior.support.check(outside).any())
    assert bool(prior.support.check(draws).all())


@pytest.mark.parametrize("batch", [1, 3])
def test_label_probabilities_sum_to_one_over_the_enumerated_support(batch: int) -> None:
    prior = Labels(torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), batch)
    support = prior.enumerate_support()
    assert sorted(map(tuple, support.tolist())) == sorted(itertools.product(range(3), repeat=batch))
    assert float(prior.log_prob(support).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_label_draws_have_their_probabilities_and_examples_are_independent() -> None:
    logits = torch.tensor([0.3, -1.0, 1.0], dtype=torch.float64)
    drawn = Labels(logits, 2).sample(DRAWS)
    assert drawn.shape == (4000, 2)
    for example in range(2):
        assert_frequencies(drawn[:, example].reshape(4, -1).numpy(), logits.softmax(0))
    joint = (logits.softmax(0)[:, None] * logits.softmax(0)).flatten()
    assert_frequencies((3 * drawn[:, 0] + drawn[:, 1]).reshape(4, -1).numpy(), joint)


def test_labels_expand_to_one_vector_a_chain() -> None:
    prior = Labels(torch.zeros(3, dtype=torch.float64), 2).expand(torch.Size([5]))
    assert prior.batch_shape == (5,)
    assert prior.sample().shape == (5, 2)
    assert prior.log_prob(torch.zeros(2, dtype=torch.long)).shape == (5,)
    assert prior.enumerate_support().shape == (9, 5, 2)
    assert prior.enumerate_support(expand=False).shape == (9, 1, 2)
    assert prior.log_prob(prior.enumerate_support(expand=False)).shape == (9, 5)


def test_labels_out_of_range_are_outside_the_support() -> None:
    prior = Labels(torch.zeros(3), 2)
    assert bool(prior.support.check(torch.tensor([0, 2])))
    assert not bool(prior.support.check(torch.tensor([0, 3])))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_label_counts_stand_for_all_label_vectors(batch: int) -> None:
    prior = Labels(torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), batch)
    y, log_orders = prior.enumerate_counts()
    found: dict[tuple[int, ...], int] = {}
    for labels in itertools.product(range(3), repeat=batch):
        found[tuple(sorted(labels))] = found.get(tuple(sorted(labels)), 0) + 1
    assert {tuple(v): round(math.exp(w)) for v, w in zip(y.tolist(), log_orders.tolist(), strict=True)} == found
    assert float((log_orders + prior.log_prob(y)).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_too_many_label_counts_are_refused_with_what_to_do() -> None:
    assert len(Labels(torch.zeros(10), 6).enumerate_counts()[0]) == 5005
    with pytest.raises(BadInput, match=r"11440 label counts, .*recover them"):
        Labels(torch.zeros(10), 7).enumerate_counts()


def test_too_many_label_vectors_are_refused_with_what_to_do() -> None:
    largest = Labels(torch.zeros(10), 4)
    assert len(largest.enumerate_support()) == 10_000
    with pytest.raises(BadInput, match="give the labels"):
        Labels(torch.zeros(10), 5).enumerate_support()


@pytest.mark.parametrize("floor", [0.02, 0.3])
def test_the_fitted_gaussian_has_the_images_mean_and_covariance_plus_its_floor(floor: float) -> None:
    images = correlated_images()
    fitted = fit_gaussian(images, floor=floor)
    flat = images.flatten(1).numpy()
    covariance = np.cov(flat.T, bias=True) + floor**2 * np.eye(6)
    np.testing.assert_allclose(fitted.mean.numpy(), flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose((fitted.factor @ fitted.factor.mT).numpy(), covariance, rtol=1e-9, atol=1e-12)
    assert fitted.rank == 6
    assert float(torch.linalg.svdvals(fitted.factor).min()) == pytest.approx(floor, rel=1e-6)  # the constant pixel's


def test_decoded_coefficients_follow_the_fitted_gaussian() -> None:
    images = correlated_images()
    fitted = fit_gaussian(images, floor=0.1)
    x = fitted.decode(fitted.coefficients(2).sample(DRAWS))
    assert x.shape == (4000, 2, 1, 2, 3)
    covariance = fitted.factor @ fitted.factor.mT
    for example in range(2):
        draws = x[:, example].flatten(1)
        assert_moments(chains_of(draws), fitted.mean, covariance.diagonal().sqrt())
        centred = draws - fitted.mean
        products = chains_of((centred[:, :, None] * centred[:, None, :]).flatten(1))
        assert misfit(products, covariance) <= LIMIT
        assert misfit(products, covariance.diagonal().diag()) > LIMIT  # pixels forgotten to be correlated


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fitted_gaussian_has_the_clients_precision(dtype: torch.dtype) -> None:
    fitted = fit_gaussian(correlated_images(), dtype=dtype)
    assert {fitted.mean.dtype, fitted.factor.dtype, fitted.coefficients().sample().dtype} == {dtype}


def test_one_image_is_too_few_to_fit() -> None:
    with pytest.raises(BadInput, match="at least 2 images"):
        fit_gaussian(torch.rand(1, 1, 2, 2))


# -- by name ---------------------------------------------------------------------------------------------------------

LABELS = torch.arange(60) % 3  # of the public images
SITES = {
    "anomaly": ["x", "anomaly"], "class_flow": ["z", "w", "x"], "class_gaussian": ["z", "x"],
    "class_mixture": ["z", "w", "x"], "class_vae": ["z", "e", "x"], "diffusion": ["z", "x"],
    "flow": ["z", "w", "x"], "gaussian": ["z", "x"],
    "gmrf": ["e", "x"],
    "logit_normal": ["z", "x"], "mixture": ["z", "w", "x"], "patches": ["x", "patches"], "ppca": ["e", "x"],
    "stationary": ["e", "x"],
    "tv": ["x", "tv"], "uniform": ["x"], "vae": ["z", "e", "x"],
}  # fmt: skip


@dataclass(frozen=True)
class Like:
    """What a prior is made for, as a client says it."""

    dtype: torch.dtype = torch.float32
    input_shape: tuple[int, ...] = (1, 3, 3)
    device: torch.device = torch.device("cpu")  # noqa: RUF009


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tensor]:
    """Public images; what is fitted to them, in no time, is kept in a cache that ends with the tests."""
    with quick_fits(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPLLEAK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield torch.rand(60, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def made(name: str, public: Tensor, count: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    """The prior of public images; of each class, that of the classes of `count` examples."""
    prior = priors.make(priors.check(Named(name)), Like(dtype), public, LABELS)
    return prior.of_class(torch.arange(count)) if isinstance(prior, priors.Conditional) else prior


def test_every_prior_can_be_named_and_set() -> None:
    assert list(priors.names()) == sorted(
        [*SITES, "records", "sentences"]
    )  # tests/inference/test_gibbs.py, test_isir.py
    for name, line in priors.names().items():
        assert line
        assert all(s.help for s in priors.settings(name))
        if name != "sentences":  # which images do not try
            assert priors.check(Named(name)).settings == {s.name: s.default for s in priors.settings(name)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SITES)
def test_a_prior_is_sampled_inside_a_model_like_its_client(name: str, dtype: torch.dtype, public: Tensor) -> None:
    traced = poutine.trace(made(name, public, dtype=dtype).sample).get_trace(2)
    assert [n for n, s in traced.nodes.items() if s["type"] == "sample" and n != "_INPUT"] == SITES[name]
    x = traced.nodes["_RETURN"]["value"]
    assert x is traced.nodes["x"]["value"]
    assert x.shape == (2, 1, 3, 3) and x.dtype == dtype


@pytest.mark.parametrize("name", SITES)
def test_under_a_plate_every_chain_has_a_batch_of_its_own(name: str, public: Tensor) -> None:
    def chains() -> Tensor:
        with pyro.plate("chains", 4):
            sampled: Tensor = made(name, public).sample(2)
            return sampled

    traced = poutine.trace(chains).get_trace()
    assert traced.nodes["_RETURN"]["value"].shape == (4, 2, 1, 3, 3)
    traced.compute_log_prob()
    assert all(s["log_prob"].shape == (4,) for s in traced.nodes.values() if s["type"] == "sample" and "log_prob" in s
               and not s["infer"].get("_deterministic") and s["name"] != "chains")  # fmt: skip


@pytest.mark.parametrize("name", SITES)
def test_a_model_that_asks_again_gets_the_same_fit(name: str, public: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in ("uniform", "tv"):  # nothing is fitted there

        def latents() -> list[Tensor]:
            torch.manual_seed(0)
            nodes = poutine.trace(made(name, public, 1).sample).get_trace(1).nodes
            return [nodes[n]["value"] for n in SITES[name]]

        first = latents()
        for lapack in ("eigh", "cholesky", "svd"):
            monkeypatch.setattr(torch.linalg, lapack, None)
        assert all(torch.equal(a, b) for a, b in zip(first, latents(), strict=True))


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("gausian", "unknown prior 'gausian': did you mean gaussian"),
        ("labels", "unknown prior 'labels'"),
        ("batchnorm", "unknown prior 'batchnorm'"),
        ("_store", "unknown prior '_store'"),
        ("gaussian:rank=3", "here: the prior gaussian has no setting 'rank'"),
        ("gaussian:reference=mnist", "here: the prior gaussian has no setting 'reference'"),
        ("gaussian:floor=wide", "here: floor of the prior gaussian is 'wide': Expected `float`"),
        ("gaussian:floor=-1", "floor must be a positive number"),
        ("ppca:rank=1.5", "here: rank of the prior ppca is 1.5: Expected `int`"),
        ("tv:isotropic=1", "here: isotropic of the prior tv is 1: Expected `bool`"),
        ("tv:weight=True", "here: weight of the prior tv is True: Expected `float`"),
        ("tv:weight=0", "weight must be a positive number"),
        ("logit_normal:margin=0.5", "margin must be below 0.5"),
        ("vae:file=3", "here: file of the prior vae is 3: Expected `str`"),
    ],
)
def test_a_name_or_setting_that_is_none_is_refused_in_one_line(said: str, refused: str) -> None:
    with pytest.raises(BadInput, match=refused) as caught:
        priors.check(Named.parse(said), "here")
    assert "\n" not in str(caught.value)


def test_reference_images_of_another_shape_are_refused() -> None:
    for name in set(SITES) - {"uniform", "tv"}:
        with pytest.raises(BadInput, match="the client's images"):
            priors.make(Named(name), Like(), "digits", LABELS)


def test_the_box_has_its_density() -> None:
    box = priors.make(Named("uniform"), Like())
    x = torch.tensor([0.0, 0.5, 1.0, 1.1]).reshape(4, 1, 1, 1).expand(4, 1, 3, 3)
    assert box.log_prob(x).tolist() == [0.0, 0.0, 0.0, -math.inf]
    assert box.draw(3).shape == (3, 1, 3, 3)


def test_total_variation_is_multiplied_onto_the_box(public: Tensor) -> None:
    made = priors.make(Named.parse("tv:weight=2.0,isotropic=True"), Like(), public)
    traced = poutine.trace(made.sample).get_trace(2)
    traced.compute_log_prob()
    x = traced.nodes["x"]["value"]
    expected = -TotalVariation(2.0, isotropic=True, smoothing=0.01).energy(x)
    torch.testing.assert_close(traced.nodes["tv"]["log_prob"], expected)
