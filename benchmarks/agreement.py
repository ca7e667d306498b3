"""Do the routes to the posterior of a ReLU client agree? The paper's CNN, and a prior of few coordinates.

    uv run benchmarks/agreement.py --data mnist --data-root DIR --rank 16 --sigma 0.1

An image is drawn from the Gaussian of public images cut to its `rank` leading components, x = mean + factor z, its
label known; the routes have z ~ Normal(0, I_rank) and one gradient g in common:

    billiard    chains on the client itself
    surrogate   chains of `hmc` on a softplus network, each draw weighed by p(g | x) of the client over that of the
                softplus network
    student     independent draws of a multivariate Student t with the moments of the surrogate's chains, weighed by
                p(z, g) of the client over the t density: no Markov chain at all
    unweighed   the surrogate's chains taken for exact: the wrong twin, to be rejected

For every pair the means of z and z² (2 · rank numbers) are compared in units of the standard error of their difference.
A row has the root mean square of these scores (1 where both are exact), the largest, and what the largest would exceed
in one case of a hundred (Bonferroni). Weights count only with a k-hat below 0.7. Standard errors: sd/√ESS for chains,
the jackknife over chains for weighted chains (they are independent), the delta method for independent draws.

Writes benchmarks/results/agreement.csv; a row of the same σ, rank, draw and pair is replaced.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import tyro
from scipy.stats import norm
from torch import Tensor

from pplleak import channels, programs, runs
from pplleak.client import Client
from pplleak.density import build
from pplleak.density.surrogate import believed
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import Posterior, convergence, diagnostics
from pplleak.priors._principal import Dense
from pplleak.priors.gaussian import FittedGaussian, fit_gaussian
from pplleak.settings import Named

COLUMNS = ["network", "sigma", "rank", "draw", "a", "b", "rms_score", "max_score", "limit", "khat_a", "khat_b",
           "rhat_a", "rhat_b", "seconds_a", "seconds_b"]  # fmt: skip
FREEDOM = 8.0  # degrees of freedom of the t density: its tails are heavier than the posterior's


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    data_root: Path | None = None
    network: str = "convnet"
    rank: int = 16
    sigma: float = 0.1
    draw: int = 0
    """Seed of the image drawn from the prior, and of its noise."""
    beta: float = 300.0
    """Sharpness of the surrogate's softplus."""
    chains: int = 16
    draws: int = 300
    independent: int = 20_000
    csv: Path = Path("benchmarks/results/agreement.csv")


@dataclasses.dataclass(frozen=True)
class Moments:
    """E z and E z² by one route, (2 · rank,), and their standard errors."""

    mean: np.ndarray
    se: np.ndarray
    khat: float | None = None
    rhat: float | None = None
    seconds: float = 0.0


def model(client: Client, batch_size: int = 1, *, prior: FittedGaussian, sigma: float) -> Tensor:
    """z ~ Normal(0, I_rank), x = mean + factor z, g | x, y ~ Normal(u(x, y), σ²)."""
    z = pyro.sample("z", prior.coefficients(batch_size))
    x = pyro.deterministic("x", prior.decode(z))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))


def leading(client: Client, public: Tensor, rank: int) -> FittedGaussian:
    """The Gaussian of public images on its `rank` leading components, nothing beside them."""
    whole = fit_gaussian(public, dtype=client.dtype)
    return FittedGaussian(whole.mean, Dense(whole.root.matrix[:, -rank:]), whole.input_shape)


def coordinates(prior: FittedGaussian, found: Posterior) -> np.ndarray:
    """The draws' z, (chain, draw, rank), float64: the factor's columns are orthogonal."""
    centred = found.x.reshape(*found.x.shape[:2], -1).astype(np.float64) - prior.mean.double().numpy()
    factor = prior.root.matrix.double().numpy()
    return np.asarray(centred @ factor / np.square(factor).sum(0))


def both(z: np.ndarray) -> np.ndarray:
    """z and z² side by side."""
    return np.concatenate([z, z**2], -1)


def of_chains(z: np.ndarray) -> Moments:
    """Plain means of chains (chain, draw, rank)."""
    seen = both(z)
    found = convergence.measure(seen)
    flat = seen.reshape(-1, seen.shape[-1])
    return Moments(flat.mean(0), flat.std(0, ddof=1) / np.sqrt(found.ess_bulk), rhat=float(found.rhat.max()))


def weighted_chains(z: np.ndarray, log_weights: np.ndarray) -> Moments:
    """Self-normalised means over independent chains; the jackknife leaves out one chain at a time."""
    seen, log_w = both(z), log_weights.reshape(z.shape[:2])
    w = np.exp(log_w - log_w.max())[..., None]
    above, below = (w * seen).sum(1), w.sum(1)  # (chain, ·)
    without = (above.sum(0) - above) / (below.sum(0) - below)
    n = len(z)
    se = np.sqrt((n - 1) / n * np.square(without - without.mean(0)).sum(0))
    return Moments(above.sum(0) / below.sum(0), se, diagnostics.khat(log_weights.reshape(-1)),
                   float(convergence.measure(seen).rhat.max()))  # fmt: skip


def student(z: np.ndarray, target, count: int, seed: int, dtype: torch.dtype) -> Moments:  # type: ignore[no-untyped-def]
    """Importance sampling of `target` (log density of z (N, rank)) from a t density with the moments of draws z."""
    flat = torch.tensor(z.reshape(-1, z.shape[-1]))
    mean, scale = flat.mean(0), torch.linalg.cholesky(flat.mT.cov())
    density = dist.MultivariateStudentT(FREEDOM, mean, scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draws = density.sample((count,))
    with torch.no_grad():
        log_p = torch.cat([target(part.to(dtype)).double() for part in draws.split(32)])
    log_weights = (log_p - density.log_prob(draws)).numpy()
    w = np.exp(log_weights - np.logaddexp.reduce(log_weights))[:, None]
    seen = both(draws.numpy())
    centre = (w * seen).sum(0)
    return Moments(centre, np.sqrt((w**2 * np.square(seen - centre)).sum(0)), diagnostics.khat(log_weights))


def compare(a: Moments, b: Moments) -> dict[str, float]:
    """Root mean square and largest of the scores, and the limit of the largest at 1 %."""
    scores = np.abs(a.mean - b.mean) / np.hypot(a.se, b.se)
    limit = float(norm.isf(0.01 / 2 / len(scores)))
    return {"rms_score": float(np.sqrt(np.mean(scores**2))), "max_score": float(scores.max()), "limit": limit}


def routes(args: Settings, observed: Observation, prior: FittedGaussian) -> dict[str, Moments]:
    bound = functools.partial(model, prior=prior, sigma=args.sigma)
    found: dict[str, Moments] = {}

    def timed(name: str, moments: Moments, since: float) -> None:
        found[name] = dataclasses.replace(moments, seconds=time.perf_counter() - since)
        print(f"{name}: {found[name].seconds:.0f} s, k-hat {moments.khat}, R-hat {moments.rhat}", flush=True)

    start = time.perf_counter()
    chains = programs.load("inference", "billiard")(
        bound, observed, observed.client, seed=1, chains=args.chains, draws=args.draws, processes=1
    )
    timed("billiard", of_chains(coordinates(prior, chains)), start)
    start = time.perf_counter()
    soft = believed(observed, args.beta)
    stand_in = programs.load("inference", "hmc")(bound, soft, soft.client, seed=2, chains=64, draws=args.draws)
    z = coordinates(prior, stand_in)
    assert stand_in.log_weights is not None
    timed("surrogate", weighted_chains(z, stand_in.log_weights), start)
    timed("unweighed", of_chains(z), start)
    start = time.perf_counter()
    density = build(bound, observed.client, observed)
    timed("student", student(z, density, args.independent, seed=3, dtype=observed.client.dtype), start)
    return found


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    network = Named(args.network, {"activation": "relu"})
    protection = Protection.parse(f"gaussian:sigma={args.sigma}")
    base = observe(Scenario(args.data, args.data_root, network=network, protection=protection))
    assert base.public is not None and base.labels is not None
    prior = leading(base.client, base.public, args.rank)
    generator = torch.Generator().manual_seed(args.draw)
    x = prior.decode(torch.randn(1, args.rank, generator=generator))
    u = base.client.update(x, base.labels).materialise().detach()
    g = u + args.sigma * torch.randn(u.shape, generator=generator)
    observed = dataclasses.replace(base, g=g, truth=x)
    found = routes(args, observed, prior)
    key = {"network": args.network, "sigma": f"{args.sigma:g}", "rank": str(args.rank), "draw": str(args.draw)}
    rows = []
    for a, b in itertools.combinations(found, 2):
        sides = {f"{what}_{side}": getattr(found[name], what)
                 for side, name in (("a", a), ("b", b)) for what in ("khat", "rhat", "seconds")}  # fmt: skip
        scores = compare(found[a], found[b])
        rows.append({**key, "a": a, "b": b, **scores, **{n: "" if v is None else f"{v:.4g}" for n, v in sides.items()}})
        rejected = "REJECTED" if scores["max_score"] > scores["limit"] else "agree"
        print(f"{a} and {b}: rms {scores['rms_score']:.2f}, largest {scores['max_score']:.2f} "
              f"(limit {scores['limit']:.2f}): {rejected}", flush=True)  # fmt: skip
    runs.Rows(args.csv, COLUMNS, ("network", "sigma", "rank", "draw", "a", "b")).add(rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
