"""Gibbs sampling from cell to cell: exact draws of records, whose categories are discrete and stay so.

A record is codes c (categories, grids) and scores s (real numbers), as the prior `records` has them. The records b of a
batch are visited in turn, in all chains at once, and in each

    c_bf | rest  ∝  p(c_bf, rest of the record) p(g | …)^β          enumerated: all states of a column in one batch
    two columns of which one depends on the other, and a column with all below it: drawn K times from the prior given
        the rest; one of the draws, or the old states, ∝ p(g | …)^β and what of p(records) they were not drawn by
    s_br | rest                                                     K candidates about a centre that is about s_br
    all grids and numbers of a record: K draws of a surrogate's Gaussian (`pplleak.density.cell_blocks`)
    the numbers of all records: steps through the Gaussian of all (`pplleak.density.cell_numbers`), where surrogates
        about the chains' own records are nearly always right

Of a column with more than `most` states, the old one and a random choice of others are compared, which is exact, too.
For a real number a centre a ~ Normal(s_br, τ²) and candidates ~ Normal(a, τ²) are drawn, the old one among them, and
one is taken ∝ p(s_br | rest) p(g | …)^β: given a, the candidates and s_br have the same law but for that weight
(Tjelmeland 2004). τ is drawn anew each time, over many orders of magnitude. A number that may be missing comes and goes
with its code. No slope of the density is asked for: a network may have kinks.

It begins where cooling from the prior (β = 0) to the posterior (β = 1) leads, in islands that are each resampled within
themselves, where a relaxed climb ends, and at what a search of its spans or SPEAR reads off the first layer
(`pplleak.density.cell_starts`, which also says when cooling is left out, and `pplleak.density.cell_spans`); R-hat
compares the chains that go on from there: such as began in different records, and do not leave them, do not agree.
Where a client's update is a sum over records, behind Gaussian noise, moves are made on quadratic forms, and their ends
accepted or refused by the likelihood (`pplleak.density.cell_fits`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build, cell_fits, cell_spans, cell_starts, traced
from pplleak.density.cell_moves import Chains, Sweep
from pplleak.density.cells import Residual, likelihood
from pplleak.density.chains import keep
from pplleak.density.density import PLATE
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent

LEAST = 4  # draws of a chain that R-hat asks for
KNOWN = {"codes", "scores"}


def declines(model: Model, observed: Observation, client: Client) -> str:
    """Why it does not take a model, "" where it does: it needs records, and known labels."""
    nodes = traced(model, client, observed.batch_size).nodes
    latents = {n for n, v in nodes.items() if v["type"] == "sample" and n not in ("x", "y", "g")}
    latents = {n for n in latents if not isinstance(nodes[n]["fn"], PLATE)}
    if not latents or latents - KNOWN or not all("records" in nodes[n]["infer"] for n in latents):
        return "gibbs moves through the cells of records: it takes a model whose prior is `records`, and a told sigma"
    if observed.labels is None:
        return "gibbs takes known labels: share them, or recover them"
    return ""


def opened(model: Model, client: Client, observed: Observation) -> tuple[Density, Any]:
    """The density with its codes as a site that is moved through, and the law of the records."""
    density = build(model, client, observed, moves=True)
    nodes = traced(model, client, observed.batch_size).nodes
    records = next(nodes[n]["infer"]["records"] for n in ("codes", "scores") if n in nodes)
    if "codes" in density.discrete:  # few enough to be summed out: others may, this one moves
        rest = {n: v for n, v in density.discrete.items() if n != "codes"}
        density = replace(density, discrete=rest, moved={**density.moved, "codes": nodes["codes"]["fn"]})
    return density, records


@torch.no_grad()
def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    chains: int = 8,
    islands: int = 4,
    particles: int = 32,
    draws: int = 300,
    moves: int = 2,
    settle: int = 8,
    most: int = 32,
    inner: int = 2,
    thin: int = 1,
    starts: int = 8,
    steps: int = 300,
    begin: str = "spear",
    short: int = 0,
) -> Posterior:
    """Draws from p(records | g). Ctrl-C keeps what has been drawn.

    Args:
        chains: all advanced in one batch; a multiple of the islands.
        islands: groups of particles that are independent of each other.
        particles: of all islands, during the warm-up.
        draws: draws a chain, after warm-up.
        moves: sweeps at each temperature of the warm-up.
        settle: sweeps after it, before the chains that go on are chosen.
        most: candidates that a move compares.
        inner: rounds of moves on the surrogate between two looks at the likelihood; 0: every candidate is looked at.
        thin: sweeps a draw.
        starts: of the relaxed climb, where there is one (Gaussian noise, an update that is a sum over records).
        steps: its Adam steps.
        begin: beside what lies in the span of the first layer, and where that does not explain the gradient, an
            inference that reads examples off it (spear, quotient): more starts, where there is a climb; empty: none.
        short: chains of each island, where cooling was done and no climb came higher: they share the chains' number of
            draws, and the islands are compared (nested R-hat: Margossian et al. 2024). 0: few long chains.
    """
    require_positive(
        chains=chains, islands=islands, particles=particles, draws=draws, moves=moves, most=most, thin=thin
    )
    if particles % islands or particles < 2 * islands:
        raise BadInput(f"{particles} particles do not divide into {islands} islands of two or more: give a multiple")
    if not 0 <= short <= particles // islands:
        raise BadInput(f"short chains are an island's particles, of which there are {particles // islands}: {short}")
    if most < 2 or min(inner, settle, starts, steps) < 0:
        raise BadInput(
            "most must be at least 2 (the old state and another), inner, settle, starts and steps at least 0"
        )
    if why := declines(model, observed, client):
        raise BadInput(why)
    pyro.set_rng_seed(seed)
    density, records = opened(model, client, observed)
    batch = cell_starts.drawn(records, particles, observed.batch_size)
    sweep = Sweep(records, likelihood(density, batch), most, inner)
    learning = cell_fits.Learning(sweep)
    temperatures: list[float] = []
    more = None
    if isinstance(sweep.fit, Residual) and starts:
        more = cell_starts.climbed(sweep.fit, records, starts, steps, progress)
        seen = cell_spans.seen(sweep.fit, records, begin, seed, progress) if begin else []
        more = cell_starts.joined([more, *seen])
    state, superchains = None, 0
    if more is not None:
        state = cell_starts.explained(sweep, more, batch, settle)
    if state is None:
        state, temperatures = cell_starts.warmed(learning, batch, islands, moves, progress)
        state, groups, left, superchains = cell_starts.begun(sweep, state, islands, more, settle, chains, short)
    else:
        state, groups, left = cell_starts.chosen(state, [[k] for k in range(len(state.fit))], chains)
    if superchains:
        draws = max(LEAST, 2 * math.ceil(chains * draws / len(state.fit) / 2))
    if superchains or learning.good:  # a few sweeps are not worth another fit
        learning.hold()
    else:
        state = cell_fits.tried_out(sweep, state)
    best = _Best()

    def chain(state: Chains) -> Iterator[dict[str, Tensor]]:
        while True:
            for _ in range(thin):
                state = sweep(state)
            best.see(state)
            yield {"codes": state.batch.codes, "scores": state.batch.scores, "lp": state.height}

    kept, interrupted = keep(chain(state), draws, progress)
    codes = {"codes": kept["codes"]} if records.forest is not None else {}
    return collect(
        density, kept["scores"].flatten(2), mode=best.scores.flatten(), kind="sampler", stats={"lp": kept["lp"]},
        curves={"temperature": torch.tensor(temperatures)}, reasons=interrupted, given=codes,
        best_given={n: best.codes[None] for n in codes},
        attrs={"temperatures": len(temperatures), "groups": groups, "groups_within_reach": left,
               **({"superchains": superchains} if superchains else {}),
               "accepted": sum(sweep.accepted) / len(sweep.accepted) if sweep.accepted else None},
    )  # fmt: skip


class _Best:
    """The records of the highest density that have been seen."""

    def __init__(self) -> None:
        self.height = -math.inf
        self.codes = self.scores = torch.zeros(0)

    def see(self, state: Chains) -> None:
        top = int(state.height.argmax())
        if float(state.height[top]) > self.height:
            self.height = float(state.height[top])
            self.codes, self.scores = state.batch.codes[top], state.batch.scores[top]


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
