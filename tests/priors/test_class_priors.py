"""Priors of each class, p(x | y): what an adversary who holds one sees, and what a class is worth, in every family."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pytest
import torch
from conftest import batch_of, tiny
from pyro import poutine
from torch import Tensor
from torch.distributions import Normal

from pplleak import density, priors, programs
from pplleak.density import label_recovery
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.priors import _store as store
from pplleak.settings import Named
from pplleak.studies.attack.attack import believe

FAMILIES = ("class_gaussian", "class_mixture", "class_flow", "class_vae")
KEPT = FAMILIES[1:]  # those that are trained
QUICK: dict[str, dict[str, Any]] = {
    "class_mixture": {"components": 3, "rank": 2, "each": 10},
    "class_flow": {"rank": 2, "hidden": 16, "epochs": 40, "lr": 1e-2},
    "class_vae": {"latents": 1, "hidden": 32, "epochs": 60, "lr": 1e-2},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is fitted on the fly is fitted quickly, and kept in a cache that ends with the test."""
    real = store.fitter
    monkeypatch.setenv("PPLLEAK_CACHE", str(tmp_path))
    monkeypatch.setattr(store, "fitter", lambda kind: functools.partial(real(kind), **QUICK.get(kind, {})))
    store.trained.cache_clear()
    yield
    store.trained.cache_clear()


def arcs(count: int = 900, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (count, 1, 1, 3) of three classes: in their first two pixels, a third of a circle each, one beside the
    other; and their classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=generator)
    angle = 2.09 * (y + torch.rand(count, generator=generator))
    x = torch.stack([0.5 + 0.3 * angle.cos(), 0.5 + 0.3 * angle.sin(), torch.full((count,), 0.5)], 1)
    return (x + 0.04 * torch.randn(count, 3, generator=generator)).reshape(count, 1, 1, 3), y


def fitted(name: str, dtype: torch.dtype) -> Any:
    """A prior of 120 images in a precision, as it comes out of its file."""
    tensors = store.fitted(name, *arcs(120), **QUICK[name]).tensors()
    return store.Stored(name, (1, 1, 3), tensors).prior(dtype)


def sites_of(prior: Any, count: int, data: dict[str, Tensor], chains: int) -> poutine.Trace:
    """What a conditional prior samples in so many chains, at given values."""

    def plated() -> Tensor:
        with pyro.plate("chains", chains):
            x: Tensor = poutine.condition(prior.sample, data)(count)
            return x

    traced = poutine.trace(plated).get_trace()
    traced.compute_log_prob()
    return traced


def total(traced: poutine.Trace) -> Tensor:
    """log p of the latent sites, (…, chains)."""
    return sum(s["log_prob"] for n, s in traced.nodes.items() if s["type"] == "sample" and n in ("z", "w", "e"))


@pytest.mark.parametrize("labels", ["known", "recovered", "unknown"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_adversary_weighs_every_label_with_its_own_images(name: str, labels: str) -> None:
    client, sigma = tiny(dtype="float64"), 0.3
    x, y = batch_of(client, (), 1)
    public = torch.rand(40, *client.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    seen = Observation(
        client.update(x, y).materialise(), 1, y if labels == "known" else None, client, public=public,
        public_labels=torch.arange(40) % client.num_classes,
    )  # fmt: skip
    if labels == "recovered":
        seen = label_recovery.recovered(seen)
        assert torch.equal(seen.labels, y)  # type: ignore[arg-type]
    believed = {"prior": name, "channel": "gaussian", "sigma": sigma}
    built = density.build(believe(programs.load("models", "optimal"), seen, believed), client, seen)
    prior: Any = priors.make(priors.check(Named(name)), client, public, seen.public_labels)
    z = torch.randn(3, built.dim, dtype=torch.float64)
    values = built.constrain(z)[0]

    def by_hand(image_of: Callable[[int], int]) -> Tensor:
        """log Σ_y p(g | x(z, y), y) p(z | y), up to a constant; image_of: the class whose image a label has."""
        each = []
        for k in range(client.num_classes) if labels == "unknown" else [int(y)]:
            traced = sites_of(prior.of_class(torch.tensor([image_of(k)])), 1, values, 3)
            u = client.update(traced.nodes["x"]["value"], torch.tensor([k])).materialise()
            each.append(Normal(u, sigma).log_prob(seen.g).sum(-1) + total(traced))
        return torch.stack(each).logsumexp(0)

    found, exact = built(z), by_hand(lambda k: k)
    torch.testing.assert_close(found - found[0], exact - exact[0])
    twin = by_hand(lambda k: (k + 1) % client.num_classes)  # another class's images
    assert float(((found - found[0]) - (twin - twin[0])).abs().max()) > 1e-3
    images, drawn = built.images(z)  # with a label of its own for every chain
    again = sites_of(prior.of_class(drawn), 1, values, 3).nodes["x"]["value"]
    torch.testing.assert_close(images, again)


@pytest.mark.parametrize("name", KEPT)
def test_images_of_many_label_vectors_are_those_of_one_at_a_time(name: str) -> None:
    prior = store.fitted(name, *arcs(120), **QUICK[name])
    y = torch.cartesian_prod(torch.arange(3), torch.arange(3))[:, None]  # (9, 1, 2), as summed-out labels stand
    values = {n: s["value"] for n, s in sites_of(prior.of_class(torch.tensor([0, 2])), 2, {}, 5).nodes.items()
              if n in ("z", "w", "e")}  # fmt: skip
    together = sites_of(prior.of_class(y), 2, values, 5)
    assert together.nodes["x"]["value"].shape == (9, 5, 2, 1, 1, 3)
    for k, labels in enumerate(y[:, 0]):
        alone = sites_of(prior.of_class(labels), 2, values, 5)
        torch.testing.assert_close(together.nodes["x"]["value"][k], alone.nodes["x"]["value"])
        torch.testing.assert_close(total(together).expand(9, 5)[k], total(alone))
    free = sites_of(prior.of_class(y), 2, {}, 5).nodes["x"]["value"]  # draws of all of them at once
    assert free.shape == (9, 5, 2, 1, 1, 3)


@pytest.mark.slow  # fits
@pytest.mark.parametrize("name", KEPT)
def test_a_class_is_worth_something_and_a_wrong_one_costs(name: str) -> None:
    public, unseen = arcs(), arcs(400, seed=9)
    prior = store.fitted(name, *public, **QUICK[name])
    plain = store.fitted(name.removeprefix("class_"), public[0], None,
                         **{n: v for n, v in QUICK[name].items() if n != "each"})  # fmt: skip
    torch.manual_seed(0)
    each = prior.log_prob_each(unseen[0])
    right = each.gather(1, unseen[1][:, None])[:, 0]

    def errors_above(gain: Tensor) -> float:
        return float(gain.mean() / gain.std()) * len(gain) ** 0.5

    assert errors_above(right - plain.log_prob(unseen[0]) - 0.3) > 5
    assert errors_above(right - each.gather(1, (unseen[1][:, None] + 1) % 3)[:, 0]) > 5
    torch.manual_seed(0)
    mixed = each.exp().mean(1).log()
    torch.testing.assert_close(prior.log_prob(unseen[0]), mixed, atol=1e-6, rtol=1e-6)
    drawn = prior.draw(300)
    assert drawn.shape == (300, 1, 1, 3)
    torch.manual_seed(1)
    own, others = (prior.log_prob(v) for v in (drawn.double(), torch.rand(300, 1, 1, 3).double()))
    assert float(own.mean()) > float(others.mean()) + 2


@pytest.mark.parametrize("name", ["class_mixture", "class_flow"])
def test_the_sites_have_the_density_that_it_claims(name: str) -> None:
    """The density of the sites, over |∂x/∂z|, is that of the image; under another class's determinant it is not."""
    prior = fitted(name, torch.float64)
    for k in range(3):
        traced = sites_of(prior.of_class(torch.tensor([k])), 1, {}, 20)
        x = traced.nodes["x"]["value"][:, 0]
        (_, log_det), (_, other) = (prior.base.encode(x, j) for j in (k, (k + 1) % 3))
        claimed = prior.log_prob_each(x)[:, k]
        torch.testing.assert_close(total(traced) - log_det, claimed, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(total(traced) - other, claimed, atol=1e-3)


def test_at_a_known_class_a_vae_of_classes_is_a_vae() -> None:
    prior = store.fitted("class_vae", *arcs(120), **QUICK["class_vae"])
    z, e = torch.randn(4, 3, 1), torch.randn(4, 3, 3)
    x = prior.of_class(torch.tensor([0, 1, 2])).decode(z, e)
    for k in range(3):
        torch.testing.assert_close(x[:, k], prior.given(k).decode(z[:, k], e[:, k]))
    assert not torch.allclose(x[:, 0], prior.given(1).decode(z[:, 0], e[:, 0]), atol=1e-3)


@pytest.mark.parametrize("name", KEPT)
def test_what_it_cannot_be_fitted_to_or_asked_for_is_one_line(name: str) -> None:
    prior = store.fitted(name, *arcs(60), **QUICK[name])
    refused: dict[str, Callable[[], object]] = {
        "have no labels": lambda: priors.make(Named(name), tiny(), torch.rand(9, *tiny().input_shape)),
        "there is a label 7": lambda: prior.of_class(torch.tensor([7])),
        "at least 2 labelled images": lambda: store.fitted(name, arcs(9)[0], arcs(5)[1]),
        "call of_class": lambda: prior.sample(1),
    }
    for words, call in refused.items():
        with pytest.raises(BadInput, match=words):
            call()


def test_a_class_of_one_image_stays_a_gaussian() -> None:
    x, y = arcs(120)
    y = y.clone()
    y[y == 2] = 1
    y[0] = 3
    prior = store.fitted("class_mixture", x, y, **QUICK["class_mixture"])
    assert prior.draw(5).isfinite().all()
    for k in (2, 3):  # nobody, and one
        assert float(prior.centres[k].abs().max()) == 0
        torch.testing.assert_close(prior.log_prob_each(x)[:, k], prior.base.log_prob_each(x)[:, k])
