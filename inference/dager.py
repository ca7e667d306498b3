"""DAGER: sentences read off the gradient by what spans its rows (a point, exact where it ends).

    T_i = {v : ‖a_vi − P₁ a_vi‖ < τ ‖a_vi‖}      a_vi the embedding of token v at position i, P₁ the projection onto the
                                                 row space of the first q, k and v's gradient
    s in a batch  ⇔  ‖h_i(s) − P₂ h_i(s)‖ < τ ‖h_i(s)‖ for all i,   h_i(s) what token i has become behind the attention

As long as a batch has fewer different tokens at their places than the layer has inputs, the gradient's rank says so,
and no other token lies in the span but by chance. A sentence alone is then read off the first test, all of its
positions at once. Sentences of a batch are told apart by the second: a causal network's grow token by token, others
are descended to (`pplleak.density.sentence_search`). No prior is needed, nor the table's own gradient, nor labels:
those that were shared are put beside the sentences that explain the gradient best with them. Embeddings of words and
of positions are added: where a batch joins every word to every position, the span holds all of their sums, and the
first test tells words alone. Of a language model the end of a sentence predicts nothing, and leaves nothing in the
span: sentences end where they grow no further, and one that begins as another is told by the gradient as a whole.

Source: Petrov, Dimitrov, Baader, Müller, Vechev, DAGER: Exact Gradient Inversion for Large Language Models, NeurIPS
2024, arXiv 2405.15586. Their second test reads the next layer's projections, and they enumerate an encoder's sentences.
"""

from __future__ import annotations

import itertools

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.client.loss import get
from pplleak.data.vocabulary import BEGIN, END, PAD
from pplleak.density import Model, require_finite, spans
from pplleak.density.sentence_search import Prefixes, Second, causal, descended, prefixes
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior
from pplleak.progress import ProgressBar, silent

POOL = 4096  # sentences of batches that are compared for one place


@torch.no_grad()
def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    tolerance: float = 0.25,
    rounds: int = 4,
) -> Posterior:
    """The sentences of a batch as a posterior of one draw; the model is not looked at. Ctrl-C keeps the sentences that
    an encoder's search has found by then.

    Args:
        tolerance: τ, in units of what rounding and noise do to the span (`pplleak.density.spans.Span.blur`).
        rounds: of random sentences that are descended from, where the network is not causal.
    """
    require_positive(tolerance=tolerance, rounds=rounds)
    require_finite(observed)
    first, behind = spans.layers(client)
    pyro.set_rng_seed(seed)
    size, (length,) = observed.batch_size, client.input_shape
    taken = spans.span(first, observed)
    if taken.full:
        raise BadInput(f"the first layer's gradient has full rank, {len(taken.basis)}: the batch has as many different "
                       "tokens at their places, or noise hides the span, and it tells nothing apart; take a wider "
                       "network, a smaller batch, or the inference isir")  # fmt: skip
    if not len(taken.basis):
        raise BadInput("the first layer's gradient is nothing but noise: take the inference isir")
    rows = sum(client.layers[n][1 if turned else 0] for n, turned in first.weights)
    if len(taken.basis) >= rows:
        raise BadInput(f"the first layer's adapters have a rank of {rows}, and the batch has as many different tokens "
                       "at their places, or more: the span is a part of theirs; take the inference isir")  # fmt: skip
    near = spans.by_position(client, first, taken) < taken.near(tolerance)
    candidates = [_own(near[:, i], i) for i in range(length)]
    reasons: list[str] = []
    silent_ends = get(client.loss).of_tokens  # the end of a sentence predicts nothing, and has no gradient
    if silent_ends:
        candidates = [own[own != END] for own in candidates] if size > 1 else _ended(candidates)
    if not any(len(c) if silent_ends else bool((c == END).any()) for c in candidates[1:]):
        raise BadInput("no position's candidates hold an end of a sentence: noise, or pruning, hides the span; take "
                       "the inference isir")  # fmt: skip
    if max(map(len, candidates)) == 1 and not (silent_ends and size > 1):
        found = _alone(candidates, length).to(client.device)
    elif behind is None:
        raise BadInput("more than one token lies in the span at a position, and the layer behind the attention is "
                       "frozen: the sentences are not told apart; take the inference isir")  # fmt: skip
    elif (second := _second(client, behind, observed, tolerance)).of.full:
        raise BadInput(f"the gradient behind the attention has full rank, {len(second.of.basis)}: sentences of this "
                       "batch are not told apart; take a wider network or a smaller batch")  # fmt: skip
    elif causal(client, behind):
        grown = prefixes(second, candidates, progress, silent_ends=silent_ends)
        found = _completed(observed, grown) if silent_ends else grown.sentences
        if grown.dropped:
            reasons.append("more prefixes lie in the span than are followed: some sentences may be missing")
    else:
        found, reasons = descended(second, candidates, size, rounds, progress)
    missing = size - len(found)
    if missing > 0:
        reasons.append(f"{missing} of {size} sentences could not be told apart, or occur twice")
    found = torch.cat([found, _filled(candidates, found, max(0, missing), length)])[:size]
    found, labels = _labelled(observed, found, exchange=missing <= 0)
    ids = found.cpu().numpy()
    return Posterior(
        x=ids[None, None].astype("float32"), y=labels.cpu().numpy()[None, None], mode=ids.astype("float32"),
        kind="point", reasons=tuple(reasons), g=observed.g.cpu().numpy(),
        attrs={"closed_form": "the spans of the first layers' gradients", "rank": len(taken.basis),
               "candidates": [len(c) for c in candidates], "found": size - max(0, missing)},
    )  # fmt: skip


def _completed(observed: Observation, grown: Prefixes) -> Tensor:
    """As many sentences as the batch has, or fewer where the gradient is not theirs: those that grew no further, and
    of sentences that begin as others do, or occur twice, the ones with which the batch's gradient is nearest. Their
    places are filled in turn, for as long as it comes nearer."""
    client, size = observed.client, observed.batch_size
    pool = torch.cat([grown.sentences, grown.others])
    leaves = len(grown.sentences)
    if leaves == size or not leaves or size * len(pool) > POOL:
        return grown.sentences
    labels = torch.zeros(size, dtype=torch.long, device=client.device)
    labels = labels if observed.labels is None else observed.labels
    picks = torch.arange(size, device=pool.device) % leaves
    least = torch.inf
    while True:
        before = least
        for k in range(size):
            if k < leaves < size:
                continue
            tried = picks.repeat(len(pool), 1)
            tried[:, k] = torch.arange(len(pool), device=pool.device)
            away = torch.cat([client.update(pool[p], labels.expand(len(p), -1)).sqdist(observed.g)
                              for p in tried.split(max(1, 256 // size))])  # fmt: skip
            picks, least = tried[int(away.argmin())], min(least, float(away.min()))
        if not least < before * (1 - 1e-9):
            break
    noise = (observed.sigma or 0.0) ** 2 * len(observed.g)
    explained = least < 2 * noise + 1e-6 * float(observed.g.double().square().sum())
    return pool[picks] if explained else grown.sentences[:size]


def _second(client: Client, layer: spans.Layer, observed: Observation, tolerance: float) -> Second:
    of = spans.span(layer, observed)
    return Second(client, layer, of, of.near(tolerance))


def _own(near: Tensor, position: int) -> Tensor:
    """The tokens that a position may hold; the frame is known."""
    if position == 0:
        return torch.tensor([BEGIN], device=near.device)
    own = near.nonzero().flatten()
    return own[(own != PAD) & (own != BEGIN)]


def _ended(candidates: list[Tensor]) -> list[Tensor]:
    """The candidates of a sentence whose end leaves nothing in the span: it stands at the first place without any."""
    words = [own[own != END] for own in candidates]
    end = next((i for i, own in enumerate(words) if i > 1 and not len(own)), len(words) - 1)
    return [*words[:end], words[0].new_tensor([END]), *(own[:0] for own in words[end + 1 :])]


def _alone(candidates: list[Tensor], length: int) -> Tensor:
    """The sentence of positions that hold one token each, up to its end, (1, length)."""
    made = torch.full((1, length), PAD)
    for i, own in enumerate(candidates):
        if not len(own):
            return made[:0]
        made[0, i] = int(own[0])
        if int(own[0]) == END:
            return made
    return made[:0]


def _filled(candidates: list[Tensor], found: Tensor, count: int, length: int) -> Tensor:
    """Stand-ins for sentences that were not found: at every position a candidate that no found sentence holds there."""
    made = torch.full((count, length), PAD, device=found.device)
    for row in made:
        row[0] = BEGIN
        for i, own in enumerate(candidates[1:], 1):
            held = torch.cat([found[:, i], made[:, i]])
            free = own[~torch.isin(own, held)]
            pick = free if len(free) else own[:1]
            if not len(pick):
                break
            row[i] = pick[torch.randint(len(pick), (1,))]
            if int(row[i]) == END:
                break
    return made


def _labelled(observed: Observation, ids: Tensor, exchange: bool) -> tuple[Tensor, Tensor]:
    """The sentences in the order of the labels that were shared, each with the label beside which its own gradient is
    nearest; labels that were not shared are each sentence's nearest."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    client, size = observed.client, len(ids)
    if get(client.loss).of_tokens:  # there is none to know
        return ids, torch.zeros(size, dtype=torch.long, device=ids.device)
    classes = torch.arange(client.labels, device=client.device)
    weight = float(get(client.loss).shares(classes[:1].expand(size), ids)[0])
    x = ids[:, None, None].expand(-1, len(classes), -1, -1).flatten(0, 1)
    update = client.update(x, classes.repeat(size)[:, None])
    away = (weight**2 * update.sqnorm() - 2 * weight * update.inner(observed.g)).unflatten(0, (size, -1))
    if observed.labels is None:
        return ids, away.argmin(1)
    places = linear_sum_assignment(away[:, observed.labels].cpu().numpy())[1]
    ids = ids[torch.as_tensor(places, device=ids.device).argsort()]
    return _exchanged(observed, ids, observed.labels) if exchange else ids, observed.labels


def _exchanged(observed: Observation, ids: Tensor, labels: Tensor) -> Tensor:
    """Sentences of different labels change places in pairs for as long as the batch's own gradient comes nearer: those
    of the sentences are not orthogonal, as an assignment takes them to be."""
    client = observed.client

    def away(batches: Tensor) -> Tensor:
        parts = batches.split(max(1, 256 // len(ids)))
        return torch.cat([client.update(p, labels.expand(len(p), -1)).sqdist(observed.g) for p in parts])

    pairs = [(a, b) for a, b in itertools.combinations(range(len(ids)), 2) if labels[a] != labels[b]]
    least = float(away(ids[None])[0])
    for _ in range(len(ids) if pairs else 0):
        tried = ids.repeat(len(pairs), 1, 1)
        for k, (a, b) in enumerate(pairs):
            tried[k, [a, b]] = ids[[b, a]]
        found = away(tried)
        if not float(found.min()) < least * (1 - 1e-9):
            break
        ids, least = tried[int(found.argmin())], float(found.min())
    return ids


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
