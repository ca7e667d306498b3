"""Iterated importance resampling: exact draws of sentences, token by token, whose ids are discrete and stay so.

In every sweep, in all chains at once, for the sentences b of a batch in turn and each of their positions i:

    v_1 … v_K ~ q_i,  v_0 the old token;   one of them is taken  ∝  p(v_k, the rest) p(g | …)^β / q_i(v_k)

which leaves p(sentences | g) as it is, whatever q is (Andrieu, Lee & Vihola 2018, i-SIR). q is what the gradient says of
a token alone: its row of the table of embeddings, and how near it lies to the span of what the first layer took
(`pplleak.density.token_proposals`). Beside that, by Metropolis and Hastings: two tokens of a sentence change places; a
last token comes, from q, or goes; two sentences exchange the token at a position, or all from there on. No slope of the
density is asked for.

It begins with tokens of q, and β grows from what tells the chains apart by a few nats to 1. Chains go on from those
within REACH nats of the best; R-hat compares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build, token_moves
from pplleak.density.chains import keep
from pplleak.density.token_moves import State, Sweep
from pplleak.density.token_proposals import proposals
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.priors.sentences import Sentences
from pplleak.progress import ProgressBar, silent

REACH = 20.0  # nats below the best from which chains go on
SETTLED = 8  # sweeps without a higher top that end the warm-up


def refuses(model: Model, observed: Observation, client: Client) -> str:
    """Why it does not take a model, "" where it does: it needs sentences, and known labels."""
    if _law(model, client, observed) is None:
        return "isir moves through the tokens of sentences: it takes a model whose prior is `sentences`, and a told sigma"
    return "" if observed.labels is not None else "isir takes known labels: share them, or recover them"


def _law(model: Model, client: Client, observed: Observation) -> Sentences | None:
    if client.vocabulary is None:
        return None
    with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        nodes = poutine.trace(model).get_trace(client, observed.batch_size).nodes
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
    chains: int = 4,
    draws: int = 100,
    warmup: int = 20,
    candidates: int = 8,
    thin: int = 1,
) -> Posterior:
    """Draws from p(sentences | g). Ctrl-C keeps what has been drawn.

    Args:
        chains: all advanced in one batch.
        draws: draws a chain, after warm-up.
        warmup: sweeps from the first β to 1.
        candidates: tokens that a move compares with the old one, K.
        thin: sweeps a draw.
    """
    require_positive(chains=chains, draws=draws, warmup=warmup, candidates=candidates, thin=thin)
    if why := refuses(model, observed, client):
        raise BadInput(why)
    law = _law(model, client, observed)
    assert law is not None
    pyro.set_rng_seed(seed)
    density: Density = build(model, client, observed, moves=True)
    sweep = Sweep(density, law, proposals(observed, law), candidates)
    state, within = _warmed(sweep, token_moves.begun(sweep, chains), warmup, progress)
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
    attrs: dict[str, Any] = {"chains_within_reach": within, "accepted": sweep.accepted.share}
    nothing = torch.zeros(chains, kept["lp"].shape[1], 0, dtype=client.dtype, device=client.device)
    return collect(
        density, nothing, mode=nothing[0, 0], kind="sampler", stats={"lp": kept["lp"]}, reasons=interrupted,
        given={"codes": kept["codes"]}, best_given={"codes": best[1][None]}, attrs=attrs,
    )  # fmt: skip


def _warmed(sweep: Sweep, state: State, warmup: int, progress: ProgressBar) -> tuple[State, int]:
    """The chains at β = 1, those far below the best begun anew from the others; and how many were not. Sweeps at 1 go on
    for as long as the best still climbs, three times `warmup` at most."""
    spread = float((state.fit.max() - state.fit.min()).clamp(min=1.0))
    first = min(1.0, 10.0 / spread) if len(state.fit) > 1 else 1e-3
    steps = [first ** (1 - k / max(1, warmup - 1)) for k in range(warmup)] + [1.0] * (3 * warmup)
    tops: list[float] = []
    for k in progress("warm-up", len(steps)):
        state = sweep(state.at(steps[k]))
        tops.append(float(state.height.max()))
        recent = tops[warmup:]
        if len(recent) > SETTLED and max(recent) < max(recent[:-SETTLED]) + 1:
            break
    ok = state.height > state.height.max() - REACH
    near, places = ok.nonzero().flatten(), torch.arange(len(ok), device=ok.device)
    return state.picked(torch.where(ok, places, near[places % len(near)])), len(near)


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
