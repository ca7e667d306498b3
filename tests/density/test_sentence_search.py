"""The search for sentences in a span: what it leaves out changes nothing, and Ctrl-C keeps what it has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from texts import shared, written
from torch import Tensor

from pplleak.data.vocabulary import BEGIN, END, PAD
from pplleak.density import sentence_search as search
from pplleak.density import spans
from pplleak.federation.observation import Observation
from pplleak.inference import dager


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    return shared(written(tmp_path_factory.mktemp("text") / "notes.txt"), "bert", batch=2, width=128)[0]


def second(observed: Observation) -> search.Second:
    _, behind = spans.layers(observed.client)
    assert behind is not None
    of = spans.span(behind, observed)
    return search.Second(observed.client, behind, of, of.near(0.25))


def candidates(observed: Observation, many: int = 4) -> list[Tensor]:
    """The true tokens at every position, and a few that are not."""
    assert observed.truth is not None
    true, draw = observed.truth.long().unbind(1), torch.Generator().manual_seed(0)
    size = len(observed.client.vocabulary or ())
    more = [torch.randint(4, size, (many,), generator=draw) for _ in true]
    own = [torch.cat([t[t != PAD], m]).unique() for t, m in zip(true, more, strict=True)]
    return [torch.tensor([BEGIN]), *own[1:]]


def descend_slowly(of: search.Second, candidates: list[Tensor], end: int) -> Tensor:
    """Every start through every sweep, and all of a sentence's tokens against the span."""
    ids = torch.full((search.STARTS, of.client.input_shape[0]), PAD)
    ids[:, 0], ids[:, end] = BEGIN, END
    own = {k: c[c != END] for k, c in enumerate(candidates) if 0 < k < end}
    for k, c in own.items():
        ids[:, k] = c[torch.randint(len(c), (search.STARTS,))]
    for _ in range(search.SWEEPS):
        for k in torch.randperm(max(0, end - 1)).add(1).tolist():
            if len(own[k]) > 1:
                tried = ids[:, None].repeat(1, len(own[k]), 1)
                tried[:, :, k] = own[k]
                away = of.distances(tried.flatten(0, 1)[:, : end + 1])[:, end].unflatten(0, tried.shape[:2])
                ids = tried[torch.arange(search.STARTS), away.argmin(1)]
    return ids.unique(dim=0)


@pytest.mark.slow
@pytest.mark.parametrize("many", [1, 6])
def test_a_descent_that_leaves_out_what_stands_still_ends_where_the_whole_one_does(
    observed: Observation, many: int
) -> None:
    of, own = second(observed), candidates(observed, many)
    end = next(k for k, c in enumerate(own) if k and (c == END).any())
    for seed in range(3):
        torch.manual_seed(seed)
        slow = descend_slowly(of, own, end)
        torch.manual_seed(seed)
        assert torch.equal(search._descend(of, own, end, iter(())), slow)


def test_the_last_token_alone_is_as_far_as_among_all(observed: Observation) -> None:
    assert observed.truth is not None
    of = second(observed)
    ids = observed.truth.long()[:, :5].flip(0)
    torch.testing.assert_close(of.last(ids), of.distances(ids)[:, -1], rtol=1e-7, atol=1e-14)


def test_a_position_without_any_token_is_no_sentence(observed: Observation) -> None:
    of, own = second(observed), candidates(observed, 1)
    own[2] = own[2][:0]
    found, reasons = search.descended(of, own, 2, 1, lambda label, total: iter(range(total)))
    assert len(found) == 0 and not reasons


def stopping(after: int) -> object:
    def progress(label: str, total: int) -> Iterator[int]:
        for k in range(total):
            if label == "sentences" and k == after:
                raise KeyboardInterrupt
            yield k

    return progress


def stopped_late(of: search.Second, own: list[Tensor]) -> tuple[Tensor, list[str]]:
    """What a search has as soon as Ctrl-C finds it with anything."""
    for sweeps in range(20):
        torch.manual_seed(0)
        with contextlib.suppress(KeyboardInterrupt):
            return search.descended(of, own, 3, 2, stopping(sweeps))  # type: ignore[arg-type]
    raise AssertionError("it never keeps anything")


def test_ctrl_c_keeps_the_sentences_that_were_found(observed: Observation) -> None:
    of, own = second(observed), candidates(observed, 1)
    torch.manual_seed(0)
    whole, _ = search.descended(of, own, 3, 2, lambda label, total: iter(range(total)))
    assert len(whole) >= 1
    found, reasons = stopped_late(of, own)
    assert 1 <= len(found) <= len(whole)
    assert any("interrupted" in r for r in reasons)
    with pytest.raises(KeyboardInterrupt):  # nothing was found yet: that is no result
        search.descended(of, own, 3, 2, stopping(0))  # type: ignore[arg-type]


def test_what_ctrl_c_kept_is_doubted(observed: Observation) -> None:
    with pytest.raises(KeyboardInterrupt):
        dager.run(lambda: None, observed, observed.client, progress=stopping(0))  # type: ignore[arg-type]
