"""Sentences token by token: the posterior that enumeration has exactly, with wrong twins."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import misfit
from texts import few, shared, written
from torch import Tensor

from pplleak.data.vocabulary import SPECIAL
from pplleak.density import build
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import isir
from pplleak.posterior.tokens import order
from pplleak.studies.attack.attack import attack

SMALL: dict[str, Any] = {"width": 8, "heads": 2, "depth": 1}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few(tmp_path_factory.mktemp("text") / "few.txt")


def exact(observed: Observation, model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Every batch of sentences, (M, batch, length), the logarithm of its prior, and log p(g | it) up to a constant."""
    vocabulary, (length,) = observed.client.vocabulary, observed.client.input_shape
    assert vocabulary is not None
    own = range(len(SPECIAL), len(vocabulary))
    each = [vocabulary.framed(w, length) for n in (1, 2, 3) for w in itertools.product(own, repeat=n)]
    states = torch.stack([torch.stack(b) for b in itertools.product(each, repeat=observed.batch_size)])
    density = build(model, observed.client, observed, moves=True)
    with torch.no_grad():
        parts = [density.fixed({"codes": c}).terms(torch.zeros(len(c), 0).double()) for c in states.split(2000)]
    prior, likelihood = (torch.cat(part) for part in zip(*parts, strict=True))
    return states, prior, likelihood


def indicators(ids: Tensor) -> Tensor:
    """Which token each position holds, as zeros and ones, (…, batch · length · 7)."""
    return torch.nn.functional.one_hot(ids, 7).flatten(-3).double()


def away(found: np.ndarray, states: Tensor, weights: Tensor, other: Tensor | None = None) -> float:
    """How far the draws' frequencies are from the probabilities of `other` (or `weights`), where `weights` are open."""
    expected = weights @ indicators(states)
    seen = (expected > 0.03) & (expected < 0.97)
    assert int(seen.sum()) > 3, "nothing is open: there is nothing to compare"
    against = expected if other is None else other @ indicators(states)
    return misfit(indicators(torch.as_tensor(found).long())[..., seen].numpy(), against[seen], floor=80)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "chains", "draws"), [(1, 64, 25), (2, 192, 10)])
def test_tokens_have_the_probabilities_of_enumeration(batch: int, chains: int, draws: int, file: Path) -> None:
    """Of one sentence, and of two. The twins believe in less noise, and draw with a move that forgets q."""
    observed, model = shared(file, "bert", batch=batch, sigma=0.05, **SMALL)
    if batch == 2:
        observed = replace(observed, labels=torch.tensor([0, 1]))
    states, prior, likelihood = exact(observed, model)
    weights = (prior + likelihood).softmax(0)
    effort: dict[str, Any] = {"seed": 1, "chains": chains, "draws": draws, "candidates": 4}
    run = functools.partial(isir.run, observed=observed, client=observed.client, **effort)
    found = run(model).x
    assert away(found, states, weights) < 5
    assert away(found, states, weights, (prior + 25 * likelihood).softmax(0)) > 5  # a fifth of the noise
    if batch == 1:
        forgetful = pytest.MonkeyPatch()
        with forgetful.context() as patched:
            patched.setattr(isir.Sweep, "_token", _forgets(isir.Sweep._token))
            assert away(run(model).x, states, weights) > 5


def _forgets(token: Any) -> Any:
    """A move that takes its candidates for draws of the prior's own."""

    def move(sweep: Any, state: Any, beside: Any, b: int, i: int) -> Any:
        drawn = replace(sweep, q=(0.2 * sweep.q).log_softmax(-1))
        made = token(drawn, state, beside, b, i)
        return token(replace(sweep, law=_Flat(sweep.law)), made, beside, b, i)

    return move


class _Flat:
    """A law that gives every sentence the same probability."""

    def __init__(self, law: Any) -> None:
        self.decode = law.decode

    def log_prob(self, ids: Tensor) -> Tensor:
        return torch.zeros(ids.shape[:-1], dtype=torch.float64)


@pytest.mark.slow
def test_a_quiet_gradient_is_read_whole_and_one_without_its_table_is_read_or_doubted(tmp_path: Path) -> None:
    for frozen in (False, True):
        observed, _ = shared(written(tmp_path / "notes.txt"), "gpt2", sigma=1e-3, width=16, depth=1, frozen=frozen)
        found = attack(observed, settings={"draws": 30, "candidates": 6})
        assert found.attrs["inference"] == "isir" and observed.truth is not None
        right = bool((found.mode == observed.truth.numpy()).all())
        assert right or (frozen and not found.summary["trusted"])
        if not frozen:
            assert found.converged, found.doubts
            assert found.summary["token_accuracy"] == 1 and found.summary["rougel"] == 1 and found.summary["trusted"]


def test_it_says_what_it_takes(file: Path) -> None:
    observed, model = shared(file, "bert", **SMALL)
    with pytest.raises(BadInput, match="known labels"):
        isir.run(model, replace(observed, labels=None), observed.client)
    with pytest.raises(BadInput, match="whose prior is `sentences`"):
        attack(observed, inference="isir", prior="gaussian")
    with pytest.raises(BadInput, match="do not divide into 3 islands"):
        isir.run(model, observed, observed.client, chains=4, islands=3)


def test_sentences_are_put_in_the_order_of_their_labels() -> None:
    like = np.array([[1, 5, 6, 2], [1, 4, 4, 2]])
    assert order(like[::-1], like).tolist() == [1, 0]
    assert order(like[::-1], like, np.array([0, 1])).tolist() == [0, 1], "those of two labels do not change places"
