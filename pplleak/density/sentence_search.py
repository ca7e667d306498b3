"""Which tokens, one of each position's, make the sentences of a batch: by what a token becomes behind the attention.

Of a causal network that depends on the tokens before it, so that prefixes grow one token at a time: those whose last
token lies in the span are kept (`prefixes`). Where every token sees all others, whole sentences are descended to from
random ones, token by token, along the distance that the last one, [SEP], has to the span (`descended`).

Source: Petrov et al. 2024 (DAGER), sections 4.2 (decoders) and 4.3 (encoders, which they enumerate).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.data.vocabulary import BEGIN, END, PAD
from pplleak.density.spans import Layer, Span, inputs
from pplleak.progress import ProgressBar

BEAM = 512  # prefixes at a time, the nearest ones
STARTS = 16  # random sentences that are descended from together
SWEEPS = 8
ALIKE = 4.0  # times the least distance that another true one may have: they share their noise
MOST = 100_000  # sentences that are looked at for one length


@dataclass(frozen=True, eq=False)
class Second:
    """The layer behind the attention, its span, and how near counts as in it."""

    client: Client
    layer: Layer
    of: Span
    tolerance: float

    def distances(self, ids: Tensor) -> Tensor:
        """Of every token of sentences ids (N, length), (N, length), float64; of padding, 0."""
        return self.of.distance(inputs(self.client, self.layer, ids)).masked_fill(ids == PAD, 0.0)

    def last(self, ids: Tensor) -> Tensor:
        """Of their last tokens, which are no padding, alone: (N,)."""
        return self.of.distance(inputs(self.client, self.layer, ids, last=True))


def causal(client: Client, layer: Layer) -> bool:
    """Whether what a token becomes behind the attention does not depend on those after it."""
    length = client.input_shape[0]
    ids = torch.full((2, length), BEGIN, device=client.device)
    ids[1, -1] = END
    first, second = inputs(client, layer, ids)[:, 0]
    return bool(torch.equal(first, second))


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Sentences (N, length) whose every token lies in the span behind the attention; others (M, length), prefixes of
    them, that would be sentences, too, had they ended; dropped: whether there were too many to follow all."""

    sentences: Tensor
    others: Tensor
    dropped: bool


def prefixes(second: Second, candidates: list[Tensor], progress: ProgressBar, *, silent_ends: bool = False) -> Prefixes:
    """Sentences grown token by token.

    Args:
        candidates: the tokens that each position may hold.
        silent_ends: the end of a sentence leaves nothing in the span (it predicts nothing): a sentence ends where no
            further token lies in it, and may have ended before.
    """
    length = second.client.input_shape[0]
    beam = torch.full((1, 1), BEGIN, device=second.client.device)
    ended: list[Tensor] = []
    others: list[Tensor] = []
    dropped = False

    def whole(s: Tensor) -> Tensor:
        s = s if int(s[-1]) == END else torch.cat([s, s.new_tensor([END])])
        return torch.nn.functional.pad(s, (0, length - len(s)), value=PAD)

    for position in progress("prefixes", length - 1 - silent_ends):
        own = candidates[position + 1]
        own = own[own != END] if silent_ends else own
        if not len(beam) or (not len(own) and not silent_ends):
            break
        grown = torch.cat([beam.repeat_interleave(len(own), 0), own.repeat(len(beam))[:, None]], 1)
        away = second.last(grown) if len(grown) else grown.new_zeros(0).double()
        near = away.argsort()
        near = near[away[near] < second.tolerance]
        dropped = dropped or len(near) > BEAM
        grown = grown[near[:BEAM]]
        if silent_ends and position:
            longer = (beam[:, None] == grown[None, :, :-1]).all(2).any(1)
            ended += [whole(s) for s in beam[~longer]]
            others += [whole(s) for s in beam[longer]]
        over = grown[:, -1] == END
        ended += [whole(s) for s in grown[over]]
        beam = grown[~over]
    if silent_ends and beam.shape[1] > 1:
        ended += [whole(s) for s in beam]
    none = beam.new_zeros(0, length)
    return Prefixes(torch.stack(ended) if ended else none, torch.stack(others) if others else none, dropped)


def descended(
    second: Second, candidates: list[Tensor], count: int, rounds: int, progress: ProgressBar
) -> tuple[Tensor, list[str]]:
    """Up to `count` different sentences, (N, length), whose every token lies in the span; and why there may be more.
    Ctrl-C keeps what has been found, if anything has.

    Args:
        rounds: of random starts for every length that a sentence may have.
    """
    ends = [k for k, own in enumerate(candidates) if k and bool((own == END).any())]
    seen: dict[tuple[int, ...], float] = {}
    price = STARTS * SWEEPS * sum(len(own) for own in candidates)
    ticks = iter(progress("sentences", rounds * len(ends) * SWEEPS))  # a round alone may take minutes
    reasons = []
    if price > MOST:
        reasons.append("too many tokens lie in the span of the first layer to try them at every position")
    try:
        for _ in range(rounds if price <= MOST else 0):
            for end in ends:
                ids = _descend(second, candidates, end, ticks)
                if not len(ids):  # a position before it holds no token
                    continue
                away = second.distances(ids).amax(1)
                for sentence, distance in zip(ids.tolist(), away.tolist(), strict=True):
                    seen[tuple(sentence)] = distance
            if len(_true(seen, second)) >= count or not ends:
                break
            if all(len(own) <= 1 for own in candidates):  # nothing else can be tried
                break
    except KeyboardInterrupt:
        if not _true(seen, second):
            raise
        reasons.append("interrupted before every length was searched")
    best = _true(seen, second)[:count]
    length = second.client.input_shape[0]
    return torch.tensor(best, device=second.client.device, dtype=torch.long).reshape(-1, length), reasons


def _true(seen: dict[tuple[int, ...], float], second: Second) -> list[tuple[int, ...]]:
    """The sentences, the nearest first, that lie in the span: below the tolerance, and not much farther than the
    nearest."""
    if not seen:
        return []
    most = min(second.tolerance, ALIKE * max(min(seen.values()), second.of.rounding))
    return sorted((s for s, d in seen.items() if d < most), key=seen.__getitem__)


def _descend(second: Second, candidates: list[Tensor], end: int, ticks: Iterator[int]) -> Tensor:
    """`STARTS` random sentences that end at a position, each token in turn exchanged for the one with which [SEP] is
    nearest to the span."""
    length, device = second.client.input_shape[0], second.client.device
    ids = torch.full((STARTS, length), PAD, device=device)
    ids[:, 0], ids[:, end] = BEGIN, END
    own = {k: c[c != END] for k, c in enumerate(candidates) if 0 < k < end}
    if any(not len(c) for c in own.values()):
        return ids[:0]
    for k, c in own.items():
        ids[:, k] = c[torch.randint(len(c), (STARTS,), device=device)]
    settled: list[Tensor] = []
    for _ in range(SWEEPS):
        next(ticks, None)
        before = ids.clone()
        for k in torch.randperm(max(0, end - 1)).add(1).tolist():
            if len(own[k]) == 1:
                continue
            tried = ids[:, None].repeat(1, len(own[k]), 1)
            tried[:, :, k] = own[k]
            away = second.last(tried.flatten(0, 1)[:, : end + 1]).unflatten(0, tried.shape[:2])
            ids = tried[torch.arange(len(ids), device=device), away.argmin(1)]
        still = (before == ids).all(1)  # a sweep that changes nothing is followed by none that does
        settled.append(ids[still])
        ids = ids[~still].unique(dim=0)  # those that have met go on as one
        if not len(ids):
            break
    return torch.cat([*settled, ids]).unique(dim=0)
