"""Where chains of records begin: particles cooled down from the prior, and the ends of a relaxed climb.

Cooling (`smc`'s way, Del Moral et al. 2006) finds the posterior where the gradient leaves much open. Where it leaves
next to nothing open, single cells are deep wells; a climb over relaxed records, whose x may be any vector under a
Gaussian with the mean and the covariance of the prior's own records, then ends near the one record that explains g.
Behind a fully connected first layer the records of a clean gradient can also be read off it. All are rounded
to records, settled by the sampler's own moves and compared by log p(records, g): chains go on from those within REACH
nats of the best. Where such a start explains g, and the prior's own records are FAR nats off, cooling is left out: it
would lower the temperature in dozens of steps, to a well that has been found.

Cooled particles are draws already, as good as there are many. Where no climb came higher, short chains of each island
may go on, and the islands, which know nothing of each other, are compared as superchains.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pplleak import programs
from pplleak.density.cell_fits import Learning
from pplleak.density.cell_moves import Chains, Sweep
from pplleak.density.cells import Batch, Residual
from pplleak.density.resampling import next_temperature, resample
from pplleak.errors import BadInput
from pplleak.progress import ProgressBar

KEEP = 0.5  # effective share of the chains that a step in temperature leaves
REACH = 20.0  # nats below the best from which chains begin
FAR = 300.0  # nats by which the prior's best particle explains g worse, so that cooling would be long
SURE = 5.0  # standard deviations of χ² within which a record explains g
DRAWN = 2000  # records of the prior that tell its mean and covariance


def cooled(chains: Chains, islands: int) -> Chains:
    """The chains at the next β, resampled within their islands."""
    fits = chains.fit.unflatten(0, (islands, -1))
    beta, log_w = next_temperature(lambda new: (new - chains.beta) * fits, chains.beta, KEEP, close=1.01)
    size = log_w.shape[1]
    ancestors = (resample(log_w) + size * torch.arange(islands, device=log_w.device)[:, None]).flatten()
    return chains.picked(ancestors, beta)


def warmed(
    sweep: Learning, batch: Batch, islands: int, moves: int, progress: ProgressBar
) -> tuple[Chains, list[float]]:
    """Particles from the prior to the posterior, with every β on the way."""
    state, temperatures, done = sweep.sweep.begun(batch), [0.0], 0
    ticks = iter(progress("warm-up", 100))
    while state.beta < 1:
        state = cooled(state, islands)
        temperatures.append(state.beta)
        for _ in range(moves):
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


def read(fit: Residual, records: Any, inference: str, seed: int, progress: ProgressBar) -> Batch | None:
    """The records nearest to what a point inference, a name or a path, reads off the gradient; None where it reads
    nothing."""
    client, observed = fit.density.client, fit.density.observed
    run = programs.load("inference", inference)
    try:
        found = run(fit.density.model, observed, client, seed=seed, progress=progress)
    except BadInput:  # another first layer, no ReLU, too much noise: the other starts have to do
        return None
    x = torch.as_tensor(found.mode).to(client.device, client.dtype).flatten(1)
    if not bool(x.isfinite().all()):
        return None
    return nearest(records, x)


def nearest(records: Any, x: Tensor) -> Batch:
    """A batch of one chain: the records nearest to x (batch, width)."""
    codes, scores = rounded(records, x)
    return Batch(codes[None], scores[None], records.decode(codes, scores).flatten(1)[None])


def rounded(records: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (…, F) and scores (…, R), within what the prior knows, of the records nearest to x (…, width)."""
    codes, numbers = records.columns.decode(x)
    scores = records.scores(numbers).clamp(records.knots[0], records.knots[-1]) if numbers.shape[-1] else numbers
    return codes, scores


def explained(sweep: Sweep, batch: Batch, prior: Batch, settle: int) -> Chains | None:
    """The starts (chains, …), settled, if one explains g and the prior's records are FAR nats off; else None."""
    assert isinstance(sweep.fit, Residual)
    state = settled(sweep, batch, settle)
    best = float(state.fit.max())
    far = best - float(sweep.begun(prior, 1.0).fit.max()) > FAR
    return state if far and explains(sweep.fit, best) else None


def explains(fit: Residual, height: float) -> bool:
    """Whether ‖g − u‖² / σ², −2 times the height, is within SURE sds of what D entries of noise give."""
    size = len(fit.density.observed.g)
    return -2 * height < size + SURE * math.sqrt(2 * size)


def settled(sweep: Sweep, batch: Batch, settle: int) -> Chains:
    """The chains after so many sweeps at β = 1, each with surrogates about where it stands."""
    state = sweep.begun(batch, 1.0)
    for _ in range(settle):
        sweep.refreshed(state)
        state = sweep(state)
    return state


def joined(batches: list[Batch]) -> Batch:
    """All their chains."""
    return Batch(*(torch.cat([getattr(b, n) for b in batches]) for n in ("codes", "scores", "x")))


def begun(
    sweep: Sweep, warm: Chains, islands: int, more: Batch | None, settle: int, chains: int, short: int
) -> tuple[Chains, int, int, int]:
    """The chains to go on from: `short` of each island where no end of a climb has come higher than the islands, or
    those of the islands and ends that are within reach of the best once they have settled. How many groups (islands,
    ends) there were, and are; and how many superchains the chains are, 0 if none."""
    size = len(warm.fit) // islands
    groups = [list(range(k * size, (k + 1) * size)) for k in range(islands)]
    batch = warm.batch
    if more is not None:
        groups += [[len(warm.fit) + k] for k in range(len(more.x))]
        batch = joined([batch, more])
    state = settled(sweep, batch, settle)
    own = islands * size
    cells = state.batch.codes[0].numel() + state.batch.scores[0].numel()
    top = float(state.height[:own].max()) + math.sqrt(cells / 2)  # as heights of draws of one posterior differ
    if short and (more is None or float(state.height[own:].max()) <= top):
        picks = [k for group in groups[:islands] for k in group[:short]]
        return state.picked(torch.tensor(picks), 1.0), len(groups), islands, islands
    return *chosen(state, groups, chains), 0


def chosen(state: Chains, groups: list[list[int]], chains: int) -> tuple[Chains, int, int]:
    """So many chains from the groups within reach of the best one, as `begun` gives them."""
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
