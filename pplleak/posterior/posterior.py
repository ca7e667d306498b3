"""The result of every attack: draws of x with their diagnostics, as an ArviZ `DataTree`, and decisions from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from pplleak import memory, reading, runs
from pplleak.errors import BadInput, printable
from pplleak.posterior import cells, convergence, decisions, diagnostics, schema, summary
from pplleak.posterior.convergence import Convergence
from pplleak.posterior.diagnostics import CHAINS, ESS, KHAT, RHAT, Kind

if TYPE_CHECKING:
    import xarray  # at run time where it is used: slow to import

__all__ = ["CHAINS", "ESS", "KHAT", "RHAT", "Kind", "Posterior"]


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws from p(x, y | g), or what an inference has in their place.

    x            (chain, draw, example, *input_shape); examples of no fixed order stand as in the mode
    y            (chain, draw, example)
    latents      (chain, draw) of every scalar site of the model: `log_sigma`, where σ is inferred
    mode         (example, *input_shape), the MAP: the highest density p(x, y | g) that the inference found
    kind         `sampler`: exact in the limit; `approximate sampler`: chains of something else, which `approximation`
                 names; `approximation`: a fitted family; `point`: one estimate, no spread
    stats        per-draw statistics (chain, draw): `lp`, `diverging`, `acceptance_rate`, `energy`, …
    curves       traces of an optimisation: name -> (step,) or (step, restart)
    log_weights  (proposal,) log p − log q of an approximation's draws, or of those that they were picked of, for k-hat
    approximation  what stands in for the posterior, in plain words: a surrogate network, …; "" where nothing does
    reasons      why this result is not to be trusted, in plain words; () where nothing is known against it
    attrs        what was run: model, inference, settings, seed, versions, seconds, …
    """

    x: np.ndarray
    y: np.ndarray
    mode: np.ndarray
    kind: Kind
    latents: dict[str, np.ndarray] = field(default_factory=dict)
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    log_weights: np.ndarray | None = None
    approximation: str = ""
    reasons: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    truth: np.ndarray | None = None
    g: np.ndarray | None = None

    # -- decisions ---------------------------------------------------------------------------------------------

    @property
    def draws(self) -> np.ndarray:
        """All draws in one row, (chain·draw, example, *input_shape)."""
        return self.x.reshape(-1, *self.x.shape[2:])

    @cached_property
    def mean(self) -> np.ndarray:
        """argmin over x̂ of E‖x − x̂‖²: the decision for squared error."""
        return self.draws.mean(0)

    @cached_property
    def sd(self) -> np.ndarray:
        """Posterior standard deviation of every pixel; zero for a point estimate."""
        return self.draws.std(0)

    @cached_property
    def medoid(self) -> np.ndarray:
        """argmin over the draws x̂ of E‖x − x̂‖, for every example: its most central draw."""
        return decisions.medoid(self.draws)

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """The central posterior interval of every pixel."""
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    # -- diagnostics -------------------------------------------------------------------------------------------

    @cached_property
    def convergence(self) -> Convergence:
        """R-hat and effective sample sizes of every pixel and scalar latent, and of the log-density, which is last.

        Of records, those of the entries that are not the same in all draws: a category that all chains are sure of has
        nothing to disagree about.
        """
        flat = self.x.reshape(*self.x.shape[:2], -1)
        columns = cells.columns_of(self)
        if columns is not None or self.attrs.get("vocabulary"):
            flat = flat[..., convergence.moving(flat)]
            sure = columns is None or not columns.real  # a real number that never moves is stuck, and not known
            if sure and not flat.shape[2] and np.ptp(self.stats.get("lp", 0.0)) == 0:
                one, count = np.ones(1), np.full(1, float(len(self.draws)))
                return convergence.Convergence(one, count, count)
        scalars = [v[..., None] for v in (*self.latents.values(), *([self.stats["lp"]] if "lp" in self.stats else []))]
        return convergence.measure(flat, *scalars, superchains=int(self.attrs.get("superchains", 0)))

    @cached_property
    def rhat_max(self) -> float | None:
        """Worst rank-normalised split R-hat over pixels and log-density (Vehtari et al. 2021, eq. 4 and section 4); the
        nested one where the chains are superchains."""
        if self.kind not in CHAINS or self.x.shape[0] < 2 or self.x.shape[1] < 4:
            return None
        return diagnostics.worst(self.convergence.rhat)

    @property
    def rhat_lp(self) -> float | None:
        """R-hat of the log-density alone: it sees what no single pixel does."""
        return None if self.rhat_max is None or "lp" not in self.stats else float(self.convergence.rhat[-1])

    @cached_property
    def ess_min(self) -> float | None:
        """Smallest bulk effective sample size over pixels and log-density."""
        if self.kind not in CHAINS or self.x.shape[1] < 4:
            return None
        return diagnostics.fewest(self.convergence.ess_bulk)

    @cached_property
    def health(self) -> diagnostics.Health:
        """Tail ESS, BFMI, acceptance, what the ELBO still gained, spread over restarts."""
        long_enough = self.kind in CHAINS and self.x.shape[1] >= 4
        ess_tail = self.convergence.ess_tail if long_enough else None
        return diagnostics.health(ess_tail, self.stats, self.curves, self.attrs)

    @cached_property
    def khat(self) -> float | None:
        """Pareto k-hat of an approximation's importance weights; above 0.7 it is not the posterior."""
        return None if self.log_weights is None else diagnostics.khat(self.log_weights)

    @property
    def divergences(self) -> int | None:
        return int(self.stats["diverging"].sum()) if "diverging" in self.stats else None

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        """Everything that speaks against this result, in plain words."""
        found = diagnostics.doubts(
            self.kind,
            self.health,
            rhat_max=self.rhat_max,
            ess_min=self.ess_min,
            divergences=self.divergences,
            khat=self.khat,
            recovered=self.attrs.get("recovered_labels"),
        )
        return (*self.reasons, *found)

    @property
    def interrupted(self) -> bool:
        """True where Ctrl-C ended the work early; what was finished is here."""
        return any(reason.startswith("interrupted") for reason in self.reasons)

    def whole(self) -> Posterior:
        """Itself, for a study that scores nothing half done.

        Raises:
            KeyboardInterrupt: it was interrupted.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        return self

    @property
    def converged(self) -> bool:
        return not self.doubts

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Every number of this result (`pplleak.posterior.summary.summarise`)."""
        return summary.summarise(self)

    @property
    def verdict(self) -> str:
        """One sentence: may this result be believed?"""
        return summary.verdict(self.summary)

    # -- ArviZ -------------------------------------------------------------------------------------------------

    def to_arviz(self) -> xarray.DataTree:
        """An ArviZ DataTree: posterior (x, y), sample_stats, observed_data, constant_data (mode, truth), curves."""
        return schema.tree(self)

    @staticmethod
    def from_arviz(tree: xarray.DataTree) -> Posterior:
        """The inverse of `to_arviz`; raises BadInput where the tree holds no attack."""
        if "posterior" not in tree.children or "x" not in tree["posterior"]:
            raise BadInput("this DataTree holds no posterior of x: it was not written by pplleak")

        def values(group: str) -> dict[str, np.ndarray]:
            return {str(n): v.values for n, v in tree[group].data_vars.items()} if group in tree.children else {}

        attrs = {}
        for name, value in tree.attrs.items():
            value = value.item() if isinstance(value, np.generic) else value
            try:
                attrs[str(name)] = json.loads(value) if isinstance(value, str) else value
            except (ValueError, RecursionError):  # words that are no JSON, or nest too deep
                attrs[str(name)] = value
        posterior, constant = values("posterior"), values("constant_data")
        return Posterior(
            x=posterior["x"],
            y=posterior["y"],
            latents={n: v for n, v in posterior.items() if n not in ("x", "y")},
            mode=constant["mode"],
            kind=attrs.pop("kind", "sampler"),
            stats=values("sample_stats"),
            curves=values("curves"),
            log_weights=constant.get("log_weights"),
            approximation=attrs.pop("approximation", ""),
            reasons=tuple(attrs.pop("reasons", ())),
            attrs=attrs,
            truth=constant.get("truth"),
            g=values("observed_data").get("g"),
        )

    def save(self, path: str | Path) -> None:
        """Write NetCDF (through h5netcdf), compressed. The file appears whole or not at all."""
        content = schema.packed(self)
        runs.write(path, lambda part: part.write_bytes(content))

    @staticmethod
    def load(path: str | Path) -> Posterior:
        """Read what `save` wrote; raises BadInput for anything else."""
        import xarray

        reading.regular(path)
        try:
            with xarray.open_datatree(path, engine="h5netcdf") as tree:
                unpacked = sum(v.nbytes for node in tree.subtree for v in node.data_vars.values())
                memory.require(2 * unpacked, f"{path}, unpacked,", "take a machine with more memory")
                return _whole(Posterior.from_arviz(tree.load()))
        except BadInput:
            raise
        except Exception as error:  # HDF5 and its readers raise what they like on bytes that lie
            raise BadInput(f"{printable(path)} is not a posterior written by pplleak: {printable(error)}") from error

    def with_(self, **changes: Any) -> Posterior:
        """A copy with fields replaced."""
        return replace(self, **changes)


def _whole(read: Posterior) -> Posterior:
    """A posterior whose parts fit each other; raises BadInput for one that was not written by `save`."""
    x, kinds = read.x, get_args(Kind)
    fits = x.ndim > 2 and x.size > 0 and read.y.shape == x.shape[:3] and read.mode.shape == x.shape[2:]
    if not fits or x.dtype.kind != "f" or read.mode.dtype.kind != "f" or read.y.dtype.kind != "i":
        raise BadInput("its draws, labels and mode do not fit each other")
    if read.kind not in kinds or not all(isinstance(r, str) for r in (read.approximation, *read.reasons)):
        raise BadInput(f"its kind is none of {', '.join(kinds)}, or its reasons are no words")
    return read
