"""Surrogates that the chains of `pplleak.inference.gibbs` move on: their own secants, or forms fitted on the way.

The update of a record is a function of the record and its label: one form may serve all records of a label, of however
many a batch is, and of a narrower posterior one a record is nearer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pplleak.density import cell_surrogates
from pplleak.density.cell_moves import SHORT, Chains, Sweep
from pplleak.density.cell_numbers import Numbers
from pplleak.density.cell_surrogates import Quadratic
from pplleak.density.cells import ENTRIES, Residual

FITS, SWEEPS = 4, 5  # of surrogates to the records that the chains go through, and sweeps between two of them
FIT = 0.1  # share of the ends of fitted surrogates that the likelihood takes, or they are given up
CLOUD = 3000  # records that they are fitted to at most
SURE = 0.9  # share of accepted ends above which the likelihood is looked at once in a visit
AGAIN = 0.5  # share of the ends of fitted surrogates below which a warm-up fits them anew
LEAST = 1 / 3  # share below which new ones are given up there


def tried_out(sweep: Sweep, chains: Chains) -> Chains:
    """Sweeps on new surrogates, before the draws that are kept: afterwards they stay as they are.

    Secants of each chain's own stay where nine in ten of their ends are accepted, and the likelihood is looked at once;
    the numbers of all records are then moved at once, too.
    Otherwise chains wander from the records that the secants were taken at, which are soon refused, and a form is
    fitted to all that they go through. It stays if more than FIT of its ends are accepted; if not, every candidate is
    compared by the likelihood.
    """
    sweep.refreshed(chains)
    sweep.short = SHORT
    if not sweep.surrogates:
        return chains
    chains, share = _share(sweep, chains)
    if share > SURE:
        sweep.short = ()
        sweep.refreshed(chains)
        assert isinstance(sweep.fit, Residual)  # as it has surrogates
        sweep.numbers = Numbers.about(sweep.fit, sweep.records, chains.batch)
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
    sweep.seen, share = [cell_surrogates.near(sweep.records, batch), batch.x], 0.0
    for _ in range(FITS):
        sweep.surrogates = forms(fit, torch.cat(sweep.seen))
        if not sweep.surrogates:
            break
        for _ in range(SWEEPS):
            chains, share = _share(sweep, chains)
            sweep.seen.append(chains.batch.x)
        sweep.seen.append(cell_surrogates.near(sweep.records, chains.batch))
    sweep.seen = None
    return chains, share


def forms(fit: Residual, cloud: Tensor, apart: bool = True) -> list[Quadratic]:
    """A form for each record of batches (N, B, width): a record's own, or, where these were too large or are not asked
    for, one for all of a label; [] where these are too large, too."""
    size = cloud.shape[2] * fit.density.client.update_size  # of a matrix J
    alike: list[object] = [y.tolist() for y in fit.labels.reshape(cloud.shape[1], -1)]
    if apart and cloud.shape[1] * size <= ENTRIES:
        alike = list(range(cloud.shape[1]))
    firsts = [alike.index(label) for label in alike]
    if len(set(firsts)) * size > ENTRIES:
        return []
    made = {}
    for first in sorted(set(firsts)):
        own = cloud[:, [b for b, other in enumerate(firsts) if other == first]].flatten(0, 1)
        picks = torch.randperm(len(own), device=own.device)[:CLOUD]
        made[first] = Quadratic.fitted(fit, own[picks], first)
    return [made[first] for first in firsts]


@dataclass(eq=False)
class Learning:
    """Sweeps of a warm-up on forms that are fitted to where its particles are, and anew where these have gone on; by
    the true likelihood alone from when on a new fit is no better. share: of the ends, that was accepted last."""

    sweep: Sweep
    share: float = 0.0
    forms: list[Quadratic] | None = None  # none yet; []: given up

    def __call__(self, chains: Chains) -> Chains:
        sweep, new = self.sweep, False
        if self.forms is None or (self.forms and self.share < AGAIN):
            new, self.forms = True, self._fitted(chains)
        sweep.surrogates, sweep.short = self.forms, () if self.share > SURE else SHORT
        if not self.forms:
            return sweep(chains)
        chains, self.share = _share(sweep, chains)
        if new and self.share < LEAST:
            self.forms = []
        return chains

    @property
    def good(self) -> bool:
        """Whether the forms need not be fitted anew."""
        return bool(self.forms) and self.share > AGAIN

    def hold(self) -> None:
        """Go on with these forms, or without any."""
        if self.good:
            self.sweep.surrogates = self.forms or []
        else:
            self.sweep.give_up()

    def _fitted(self, chains: Chains) -> list[Quadratic]:
        fit, batch = self.sweep.fit, chains.batch
        if not isinstance(fit, Residual) or not self.sweep.inner:
            return []
        return forms(fit, torch.cat([cell_surrogates.near(self.sweep.records, batch), batch.x]), apart=False)
