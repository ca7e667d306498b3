"""From which tokens a sampler of sentences takes its candidates: what the gradient says of each alone.

    log q_i(v) = ½ log p(v) + what v's row of the table says + what the first layer's span says of v at position i

q may be anything that is positive: a sampler weighs its candidates by p(v) p(g | …) / q(v), so that the draws are those
of the posterior whatever q is; a q that is near it wastes fewer of them. The row's log-odds and the span's standard
score (against all other tokens at that position) are cut off, and a part MIXED of q is the words' own frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pplleak.data.vocabulary import SPECIAL
from pplleak.density import embedding_rows, spans
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.priors.sentences import Sentences

ROW, SPAN = 10.0, 14.0  # nats at most that a row, and a span, add
MIXED = 0.05


@torch.no_grad()
def proposals(observed: Observation, law: Sentences) -> Tensor:
    """log q (length, V), float64; −inf of the special tokens, which no position of a sentence's own holds."""
    length, size = law.input_shape[0], len(law.words)
    score = (0.5 * law.words.log()).expand(length, size).clone()
    named = embedding_rows.named(observed)
    if named is not None and not named.tied:
        score += named.log_odds[:size].clamp(-ROW, ROW)
    score += _spanned(observed, length, size)
    score[:, : len(SPECIAL)] = -torch.inf
    alone = law.words.log()
    return torch.logaddexp(score.log_softmax(-1) + torch.tensor(1 - MIXED).log(), alone + torch.tensor(MIXED).log())


def _spanned(observed: Observation, length: int, size: int) -> Tensor:
    """What the span says, (length, V); 0 where the test cannot be made."""
    nothing = torch.zeros(length, size, dtype=torch.float64, device=observed.g.device)
    try:
        first, _ = spans.layers(observed.client)
    except BadInput:
        return nothing
    of = spans.span(first, observed)
    if of.full or not len(of.basis):
        return nothing
    away = spans.by_position(observed.client, first, of).mT
    others = away[:, len(SPECIAL) :]
    z = (others.mean(1, keepdim=True) - away) / others.std(1, keepdim=True).clamp(min=1e-9)
    said = (0.5 * z.clamp(min=0).square() - 2).clamp(0, SPAN)
    nothing[:, : said.shape[1]] = said[:, :size]
    return nothing
