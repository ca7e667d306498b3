"""Iterated importance resampling: exact draws of sentences, token by token, whose ids are discrete and stay so.

In every sweep, in all chains at once, for the sentences b of a batch in turn and each of their positions i:

    v_1 … v_K ~ q_i,  v_0 the old token;   one of them is taken  ∝  p(v_k, the rest) p(g | …)^β / q_i(v_k)

which leaves p(sentences | g) as it is, whatever q is (Andrieu, Lee & Vihola 2018, i-SIR). q is what the gradient says
of a token alone: its row of the table of embeddings, and how near it lies to the span of what the first layer took
(`pplleak.density.token_proposals`). Beside that, by Metropolis and Hastings: two tokens of a sentence change places; a
last token comes, from q, or goes; two sentences exchange the token at a position, or all from there on. No slope of the
density is asked for.

It begins with tokens of q, and cools from β = 0 to 1 in islands of chains that are resampled within themselves (Del
Moral et al. 2006). q then takes in what the chains have seen, once and for all. Chains go on from those within REACH
nats of the best; R-hat compares them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.data.vocabulary import SPECIAL
from pplleak.density import Density, Model, build, token_moves, traced
from pplleak.density.chains import keep
from pplleak.density.resampling import next_temperature, resample
from pplleak.density.token_moves import State, Sweep
from pplleak.density.token_proposals import proposals
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect, tokens
from pplleak.priors.sentences import Sentences
from pplleak.progress import ProgressBar, silent

REACH = 20.0  # nats below the best from which chains go on
SETTLED = 8  # sweeps without a higher top that end the warm-up
LONGEST = 200  # sweeps of it
KEEP = 0.5  # effective share of the chains that a step in temperature leaves


def refuses(model: Model, observed: Observation, client: Client) -> str:
    """Why it does not take a model, "" where it does: it needs sentences, and known labels."""
    if _law(model, client, observed) is None:
        return (
            "isir moves through the tokens of sentences: it takes a model whose prior is `sentences`, and a told sigma"
        )
    return "" if observed.labels is not None else "isir takes known labels: share them, or recover them"


def _law(model: Model, client: Client, observed: Observation) -> Sentences | None:
    if client.vocabulary is None:
        return None
    nodes = traced(model, client, observed.batch_size).nodes
    known = {"codes", "x", "y", "g"}
    others = [n for n, v in nodes.items() if v["type"] == "sample" and n not in known]
    return nodes["codes"]["infer"].get("sentences") if "codes" in nodes and not others else None


@torch.no_grad()
def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    chains: int = 16,
    draws: int = 60,
    islands: int = 4,
    candidates: int = 8,
    thin: int = 1,
) -> Posterior:
    """Draws from p(sentences | g). Ctrl-C keeps what has been drawn.

    Args:
        chains: all advanced in one batch; a multiple of the islands.
        draws: draws a chain, after warm-up.
        islands: groups of chains that are independent of each other until they have cooled.
        candidates: tokens that a move compares with the old one, K.
        thin: sweeps a draw.
    """
    require_positive(chains=chains, draws=draws, islands=islands, candidates=candidates, thin=thin)
    if chains % islands:
        raise BadInput(f"{chains} chains do not divide into {islands} islands: give a multiple")
    if why := refuses(model, observed, client):
        raise BadInput(why)
    law = _law(model, client, observed)
    assert law is not None and observed.labels is not None
    pyro.set_rng_seed(seed)
    density: Density = build(model, client, observed, moves=True)
    sweep = Sweep(density, law, proposals(observed, law), candidates)
    sweep, state, within = _warmed(sweep, token_moves.begun(sweep, chains), islands, progress)
    doubt = f"only one of {islands} islands ended near the best sentences that were seen: there may be better ones"
    alone = [] if within > 1 or islands == 1 else [doubt]
    best = [state.height.max(), state.codes[int(state.height.argmax())]]

    def chain(state: State) -> Iterator[dict[str, Tensor]]:
        while True:
            for _ in range(thin):
                state = sweep(state)
            top = int(state.height.argmax())
            if state.height[top] > best[0]:
                best[:] = [state.height[top], state.codes[top]]
            yield {"codes": state.codes, "lp": state.height}

    sweep.accepted.clear()
    kept, interrupted = keep(chain(state), draws, progress)
    attrs: dict[str, Any] = {"islands_within_reach": within, "accepted": sweep.accepted.share}
    nothing = torch.zeros(chains, kept["lp"].shape[1], 0, dtype=client.dtype, device=client.device)
    ids, like, labels = (t.cpu().numpy() for t in (kept["codes"], best[1], observed.labels))
    ordered = [[draw[tokens.order(draw, like, labels)] for draw in own] for own in ids]
    codes = torch.as_tensor(np.array(ordered), device=client.device)
    return collect(
        replace(density, exchangeable=False), nothing, mode=nothing[0, 0], kind="sampler", stats={"lp": kept["lp"]},
        given={"codes": codes}, best_given={"codes": best[1][None]}, reasons=[*alone, *interrupted], attrs=attrs,
    )  # fmt: skip


def _cooled(state: State, islands: int) -> State:
    """The chains at the next β, resampled within their islands."""
    fits = state.fit.unflatten(0, (islands, -1))
    beta, log_w = next_temperature(lambda new: (new - state.beta) * fits, state.beta, KEEP, close=1.01)
    size = log_w.shape[1]
    ancestors = resample(log_w) + size * torch.arange(islands, device=log_w.device)[:, None]
    return state.picked(ancestors.flatten()).at(beta)


def _warmed(sweep: Sweep, state: State, islands: int, progress: ProgressBar) -> tuple[Sweep, State, int]:
    """The chains at β = 1, those far below the best begun anew from the others, and how many islands have one that is
    not; and the moves, with tokens among their candidates that the chains have seen at their places. Sweeps at 1 go on
    for as long as the best still climbs."""
    seen = torch.zeros_like(sweep.q)
    state, tops = state.at(0.0), [-math.inf]
    for _ in progress("warm-up", LONGEST):
        if state.beta < 1:
            state = _cooled(state, islands)
        elif len(tops) > SETTLED and max(tops) < max(tops[:-SETTLED]) + 1:
            break
        state = sweep(state)
        own = state.codes.flatten(0, 1).mT
        if state.beta == 1:
            tops.append(float(state.height.max()))
            seen.scatter_add_(1, own, torch.ones_like(own, dtype=seen.dtype))
    seen[:, : len(SPECIAL)] = 0
    share = seen / seen.sum(1, keepdim=True).clamp(min=1.0)
    sweep = replace(sweep, q=torch.logaddexp(sweep.q, share.log()) - (1 + share.sum(1, keepdim=True)).log())
    ok = state.height > state.height.max() - REACH
    near, places = ok.nonzero().flatten(), torch.arange(len(ok), device=ok.device)
    within = int(ok.unflatten(0, (islands, -1)).any(1).sum())
    return sweep, state.picked(torch.where(ok, places, near[places % len(near)])), within


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
