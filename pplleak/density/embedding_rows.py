"""Which rows of the table of embeddings have a gradient: they name the tokens of a batch.

A table is looked up, so that ∇W_v = Σ_r δ_r [w_r = v] is 0 for every token v that does not occur. Behind noise a row
that does has the law Normal(0, (σ² + τ²) I) in place of Normal(0, σ² I), with τ² the mean square of a row's entries:

    log odds_v = logit p_v + ‖G_v‖²/2 (1/σ² − 1/(σ² + τ²)) − (d/2) log(1 + τ²/σ²)

with p_v the share of public batches that token v occurs in, and τ² what the rows of all words hold beyond the noise,
over the words that a batch has.

Source: the rows, Melis et al. 2019, section 4.1 (bag of words from embeddings); Gupta et al. 2022 (FILM).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pplleak.client import Client
from pplleak.client.loss import get
from pplleak.data.vocabulary import SPECIAL, Vocabulary
from pplleak.federation.observation import Observation

CLEAN = 1e-6  # of the largest row: what is smaller is rounding
LEAST = 1e-6  # share of public batches that a token which nobody has seen occurs in


@dataclass(frozen=True, eq=False)
class Named:
    """tokens: the ids of tokens whose row has a gradient, without the special ones; exact: no noise blurs it;
    log_odds (V,) that a token occurs, ±inf where exact; tied: all rows have one, since the output layer is the same
    table, and name nothing."""

    tokens: tuple[int, ...]
    exact: bool
    log_odds: Tensor
    tied: bool = False


def table(client: Client) -> str | None:
    """The name of the shared table of embeddings: a row a token; None where none is shared (frozen, or none there)."""
    found = None if client.vocabulary is None else embedding(client.network, client.vocabulary)
    return found[0] if found is not None and found[0] in client.layers else None


def embedding(network: nn.Module, vocabulary: Vocabulary) -> tuple[str, nn.Embedding] | None:
    """A network's table with a row a token, the first there is, and the name of its parameter; None without one."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings >= len(vocabulary):
            return (f"{name}.weight" if name else "weight"), module
    return None


def named(observed: Observation) -> Named | None:
    """The tokens that the gradient names; None where the table's gradient is not shared, or went through another
    channel than Gaussian noise."""
    client, name, channel = observed.client, table(observed.client), observed.protection.channel
    known = channel is None or (channel.name in ("gaussian", "rounded") and observed.sigma is not None)
    if name is None or not known or observed.protection.defence is not None:
        return None
    rows = client.split(observed.g)[name].double()
    if joined(client, name):
        return Named((), False, torch.zeros(len(rows), dtype=torch.float64, device=rows.device), tied=True)
    square, width, sigma = rows.square().sum(1), rows.shape[1], observed.sigma or 0.0
    largest = float(square[len(SPECIAL) :].max())
    if width * sigma**2 < (3 * CLEAN) ** 2 * largest:  # the noise of a row is far below any that counts
        there = square > max((CLEAN**2) * largest, 16 * width * sigma**2)
        odds = torch.where(there, torch.inf, -torch.inf).double()
        return Named(_own(there), True, odds, tied=bool(there.double().mean() > 0.9))
    prior, own = _shares(observed, len(rows)), slice(len(SPECIAL), None)  # [CLS] may have a row of its own size
    beyond = float((square[own] - width * sigma**2).sum() / width / prior[own].sum())
    tau = max(beyond, 1e-4 * sigma**2)
    odds = prior.logit() + 0.5 * square * (1 / sigma**2 - 1 / (sigma**2 + tau))
    odds = odds - 0.5 * width * torch.log1p(torch.tensor(tau / sigma**2, dtype=torch.float64))
    return Named(_own(odds > 0), False, odds)


@torch.no_grad()
def joined(client: Client, name: str) -> bool:
    """Whether tokens that do not occur have a gradient, too: the output layer is the same table, as a language model's
    often is. Looked at on a sentence of one word."""
    assert client.vocabulary is not None
    if get(client.loss).targets not in ("classes", "input"):
        return False  # found by the rows themselves
    (length,) = client.input_shape
    ids = client.vocabulary.framed([len(SPECIAL)], length).to(client.device)
    y = torch.zeros(1, 1, dtype=torch.long, device=client.device)
    update = client.update(ids[None, None].to(client.dtype), y).materialise()
    rows = client.split(update)[name][0]
    others = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    others[ids] = False
    return bool((rows[others] != 0).any())


def _own(there: Tensor) -> tuple[int, ...]:
    return tuple(i for i in there.nonzero().flatten().tolist() if i >= len(SPECIAL))


def _shares(observed: Observation, rows: int) -> Tensor:
    """The chance (rows,) that a batch of public sentences has each token."""
    counts = torch.zeros(rows, dtype=torch.float64)
    public = observed.public
    if public is None:
        return torch.full((rows,), 0.5, dtype=torch.float64)
    ids = public.long().cpu()
    held = torch.zeros(len(ids), rows, dtype=torch.bool) if len(ids) * rows < 2**28 else None
    if held is not None:
        counts = held.scatter(1, ids, True).double().sum(0)
    else:
        counts.index_add_(0, ids.flatten(), torch.ones(ids.numel(), dtype=torch.float64))
    share = (counts / len(ids)).clamp(LEAST, 1 - LEAST)
    return 1 - (1 - share) ** observed.batch_size


def said(found: Named | None, vocabulary: Vocabulary, observed: Observation) -> str:
    """What the rows say, in a line."""
    if found is None:
        frozen = table(observed.client) is None
        why = f"behind {observed.protection}, the zeros are not told from the others"
        return f"embedding rows: {'the table is not shared (frozen), and names no token' if frozen else why}"
    if found.tied:
        return "embedding rows: the output layer shares the table, all its rows have a gradient, and name no token"
    how = "exactly" if found.exact else "more likely than not, through the noise"
    words = ", ".join(vocabulary.tokens[i] for i in found.tokens if i < len(vocabulary))
    own = "" if observed.truth is None else _score(found, observed)
    return f"embedding rows name {len(found.tokens)} tokens, {how}{own}: {words or '–'}"


def _score(found: Named, observed: Observation) -> str:
    assert observed.truth is not None
    ids = observed.truth.long()
    true = {int(i) for i in ids.flatten() if int(i) >= len(SPECIAL)}
    right = len(true & set(found.tokens))
    return f" ({right} of the {len(true)} different ones that it has, and {len(found.tokens) - right} others)"
