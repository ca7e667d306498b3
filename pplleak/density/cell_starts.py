"""Where chains of records begin: particles cooled down from the prior, and the ends of a relaxed climb.

Cooling (`smc`'s way, Del Moral et al. 2006) finds the posterior where the gradient leaves much open. Where it leaves
next to nothing open, single cells are deep wells; a climb over relaxed records, whose x may be any vector under a
Gaussian with the mean and the covariance of the prior's own records, then ends near the one record that explains g.
Both are rounded to records, settled by the sampler's own moves and compared by log p(records, g): chains go on from
those within REACH nats of the best.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pplleak.density.cell_moves import Chains, Sweep
from pplleak.density.cells import Batch, Residual
from pplleak.density.resampling import next_temperature, resample
from pplleak.progress import ProgressBar

KEEP = 0.5  # effective share of the chains that a step in temperature leaves
REACH = 20.0  # nats below the best from which chains begin
DRAWN = 2000  # records of the prior that tell its mean and covariance


def cooled(chains: Chains, islands: int) -> Chains:
    """The chains at the next β, resampled within their islands."""
    fits = chains.fit.unflatten(0, (islands, -1))
    beta, log_w = next_temperature(lambda new: (new - chains.beta) * fits, chains.beta, KEEP, close=1.01)
    size = log_w.shape[1]
    ancestors = (resample(log_w) + size * torch.arange(islands, device=log_w.device)[:, None]).flatten()
    return chains.picked(ancestors, beta)


def warmed(sweep: Sweep, batch: Batch, islands: int, moves: int, progress: ProgressBar) -> tuple[Chains, list[float]]:
    """Particles from the prior to the posterior, with every β on the way."""
    state, temperatures, done = sweep.begun(batch), [0.0], 0
    ticks = iter(progress("warm-up", 100))
    while state.beta < 1:
        state = cooled(state, islands)
        temperatures.append(state.beta)
        for _ in range(moves):
            sweep.refreshed(state)
            state = sweep(state)
        reached = int(100 * (1 + math.log10(max(state.beta, 1e-12)) / 12))
        for _ in range(done, reached):
            next(ticks, None)
        done = max(done, reached)
    return state, temperatures


def climbed(fit: Residual, records: Any, starts: int, steps: int, progress: ProgressBar) -> Batch:
    """The records nearest to the ends of a climb of −‖g − u(x)‖² / 2σ² + log Normal(x; mean, cov) by Adam."""
    client, observed, y = fit.density.client, fit.density.observed, fit.labels
    x = drawn(records, DRAWN, 1).x.flatten(1).double()
    mean, rest = x.mean(0), x - x.mean(0)
    one = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    factor = torch.linalg.cholesky(rest.mT @ rest / DRAWN + 1e-4 * one).to(client.dtype)
    w = torch.randn(starts, observed.batch_size, x.shape[1], dtype=client.dtype, device=client.device)
    best, best_w = torch.full((starts,), torch.inf, dtype=torch.float64, device=w.device), w.clone()
    with torch.enable_grad():
        w.requires_grad_()
        adam = torch.optim.Adam([w], lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in progress("climb", steps):
            adam.zero_grad()
            u = client.update(mean.to(w) + w @ factor.mT, y)
            cost = u.sqdist(observed.g) / (2 * fit.sigma**2) + 0.5 * w.double().square().sum((1, 2))
            better = cost.detach() < best
            best[better], best_w[better] = cost.detach()[better], w.detach()[better]
            cost.sum().backward()
            adam.step()
            schedule.step()
    codes, numbers = records.columns.decode(mean.to(w) + best_w @ factor.mT)
    scores = records.scores(numbers)
    return Batch(codes, scores, records.decode(codes, scores).flatten(2))


def begun(
    sweep: Sweep, warm: Chains, islands: int, more: Batch | None, settle: int, chains: int
) -> tuple[Chains, int, int]:
    """The chains to go on from: those of the islands, and of the ends of a climb, that are within reach of the best
    once they have settled. And how many groups (islands, ends) there were, and are."""
    size = len(warm.fit) // islands
    groups = [list(range(k * size, (k + 1) * size)) for k in range(islands)]
    batch = warm.batch
    if more is not None:
        groups += [[len(warm.fit) + k] for k in range(len(more.x))]
        batch = Batch(*(torch.cat([a, b]) for a, b in ((batch.codes, more.codes), (batch.scores, more.scores),
                                                      (batch.x, more.x))))  # fmt: skip
    state = sweep.begun(batch, 1.0)
    for _ in range(settle):
        sweep.refreshed(state)
        state = sweep(state)
    heights = torch.stack([state.height[torch.tensor(g)].median() for g in groups])
    kept = [g for g, h in zip(groups, heights.tolist(), strict=True) if h > float(heights.max()) - REACH]
    picks = [kept[k % len(kept)][k // len(kept) % len(kept[k % len(kept)])] for k in range(chains)]
    return state.picked(torch.tensor(picks), 1.0), len(groups), len(kept)


def drawn(records: Any, count: int, size: int) -> Batch:
    """Batches of so many records from the prior."""
    scores = records.mean.new_zeros(count, size, 0)
    codes = torch.zeros(count, size, 0, dtype=torch.long, device=scores.device)
    codes = codes if records.forest is None else records.forest.sample(torch.Size([count, size]))
    scores = records.given(codes).sample() if len(records.mean) else scores
    return Batch(codes, scores, records.decode(codes, scores).flatten(2))
