"""Surrogates that the chains of `pplleak.inference.gibbs` go on with: their own secants, or forms fitted on the way."""

from __future__ import annotations

import torch

from pplleak.density import cell_surrogates
from pplleak.density.cell_moves import Chains, Sweep
from pplleak.density.cell_surrogates import Quadratic
from pplleak.density.cells import ENTRIES, Residual

FITS, SWEEPS = 4, 5  # of surrogates to the records that the chains go through, and sweeps between two of them
FIT = 0.1  # share of the ends of fitted surrogates that the likelihood takes, or they are given up
CLOUD = 3000  # records that they are fitted to at most
SURE = 0.9  # share of the ends of secants that is accepted where the posterior is narrow


def tried_out(sweep: Sweep, chains: Chains) -> Chains:
    """Sweeps on new surrogates, before the draws that are kept: afterwards they stay as they are.

    Secants of each chain's own stay where nine in ten of their ends are accepted, and the likelihood is looked at once.
    Otherwise chains wander from the records that the secants were taken at, which are soon refused, and a form is
    fitted to all that they go through. It stays if more than FIT of its ends are accepted; if not, every candidate is
    compared by the likelihood.
    """
    sweep.refreshed(chains)
    if not sweep.surrogates:
        return chains
    chains, share = _share(sweep, chains)
    if share > SURE:
        sweep.short = ()
        sweep.refreshed(chains)
        return chains
    chains, share = _learned(sweep, chains)
    if share < FIT:
        sweep.give_up()
    return chains


def _share(sweep: Sweep, chains: Chains) -> tuple[Chains, float]:
    """The chains a sweep on, and the share of the surrogates' ends that was accepted."""
    sweep.accepted.clear()
    chains = sweep(chains)
    share = sum(sweep.accepted) / len(sweep.accepted)
    sweep.accepted.clear()
    return chains, share


def _learned(sweep: Sweep, chains: Chains) -> tuple[Chains, float]:
    """Surrogates that are fitted to where the chains go, whether it was accepted or not, and to what is near, again and
    again: the chains, and the share of ends that was accepted at last."""
    fit, batch = sweep.fit, chains.batch
    assert isinstance(fit, Residual)
    if batch.x[0].numel() * fit.density.client.update_size > ENTRIES:  # one matrix J a record
        return chains, 0.0
    sweep.seen, share = [cell_surrogates.near(sweep.records, batch), batch.x], 0.0
    for _ in range(FITS):
        cloud = torch.cat(sweep.seen)
        picks = torch.randperm(len(cloud), device=cloud.device)[:CLOUD]
        sweep.surrogates = [Quadratic.fitted(fit, cloud[picks, b], b) for b in range(cloud.shape[1])]
        for _ in range(SWEEPS):
            chains, share = _share(sweep, chains)
            sweep.seen.append(chains.batch.x)
        sweep.seen.append(cell_surrogates.near(sweep.records, chains.batch))
    sweep.seen = None
    return chains, share
