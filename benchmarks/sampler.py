"""How fast is each sampler on one and the same posterior? Ours, stock Pyro's NUTS and NumPyro's NUTS.

    uv run --group bench benchmarks/sampler.py --data mnist --data-root DIR --sigma 0.03

One image, one network, one observation; the Gaussian prior in the same non-centred PCA coordinates for all. Every
sampler starts cold: compilation, the search for the MAP and warm-up are in `warmup_s`. ESS/s counts the sampling alone.
`seconds_to_rhat_1.01` is warm-up plus the sampling time of the shortest run of draws whose worst rank-normalised R-hat
(all pixels and the log-density) is below 1.01; empty where no run was.

Writes benchmarks/results/sampler.csv (a row a sampler) and prints the table with the ratios to ours. Precision: ours
and NumPyro's float32, Pyro's float64 (its mass matrix is).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import arviz
import numpy as np
import torch
import tyro

from pplleak import attack, priors, programs
from pplleak.attack import Target
from pplleak.inference import hmc, nuts

COLUMNS = ["posterior", "sampler", "device", "chains", "warmup_s", "seconds_to_rhat_1.01", "ess_per_s_min",
           "ess_per_s_median", "rhat_max", "peak_mb"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    data_root: Path | None = None
    widths: tuple[int, ...] = (256,)
    activation: str = "gelu"
    sigma: float = 0.03
    samplers: tuple[Literal["pplleak", "numpyro", "pyro"], ...] = ("pplleak", "numpyro", "pyro")
    draws: int = 250
    numpyro_chains: tuple[int, ...] = (4, 16)
    numpyro_warmup: int = 300
    pyro_warmup: int = 150
    pyro_draws: int = 100
    csv: Path = Path("benchmarks/results/sampler.csv")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """draws (chain, draw, pixels + 1), the log-density last; seconds of everything before them, and of them."""

    draws: np.ndarray
    warmup_s: float
    sampling_s: float


class Clock:
    """A progress function that takes the time at which sampling began."""

    def __init__(self, label: str, skip: int = 0) -> None:
        self.label, self.skip, self.began = label, skip, 0.0

    def __call__(self, label: str, total: int) -> Iterator[int]:
        for k in range(total):
            if label == self.label and k == self.skip:
                self.began = time.perf_counter()
            yield k


def flat(posterior: Any) -> np.ndarray:
    x = posterior.x.reshape(*posterior.x.shape[:2], -1).astype(np.float64)
    return np.concatenate([x, posterior.stats["lp"][..., None]], -1)


def pplleak(target: Target, model: Any, args: Settings) -> Run:
    clock, start = Clock("sampling"), time.perf_counter()
    found = hmc.run(model, target.observed, target.client, progress=clock, draws=args.draws)
    end = time.perf_counter()
    return Run(flat(found), clock.began - start, end - clock.began)


def pyro_nuts(target: Target, model: Any, args: Settings) -> Run:
    """One chain: Pyro runs its chains one after another, so ESS/s does not depend on their number."""
    clock, start = Clock("NUTS chain 1", skip=args.pyro_warmup), time.perf_counter()
    found = nuts.run(model, target.observed, target.client, progress=clock, chains=1, draws=args.pyro_draws,
                     warmup=args.pyro_warmup)  # fmt: skip
    end = time.perf_counter()
    return Run(flat(found), clock.began - start, end - clock.began)


def numpyro_nuts(target: Target, model: Any, args: Settings, chains: int) -> Run:
    """The same posterior written in NumPyro, its gradient materialised by jax.grad; chains vectorised."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    prior = priors.fit_gaussian(model.keywords["reference"])
    mean, factor = jnp.array(prior.mean.numpy(), jnp.float32), jnp.array(prior.factor.numpy(), jnp.float32)
    parameters = [jnp.array(p.numpy()) for p in target.client.parameters.values()]
    g = jnp.array(target.observed.g.numpy())
    label, sigma = int(target.observed.labels[0]), model.keywords["sigma"]  # type: ignore[index]
    activation = {"gelu": lambda a: jax.nn.gelu(a, approximate=False), "softplus": jax.nn.softplus,
                  "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "silu": jax.nn.silu}[args.activation]  # fmt: skip

    def loss(parameters: list, x: Any) -> Any:
        for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            x = activation(weight @ x + bias)
        return -jax.nn.log_softmax(parameters[-2] @ x + parameters[-1])[label]

    def program() -> None:
        z = numpyro.sample("z", dist.Normal(0, 1).expand([len(mean)]).to_event(1))
        x = mean + factor @ z
        update = jnp.concatenate([u.ravel() for u in jax.grad(loss)(parameters, x)])
        numpyro.sample("g", dist.Normal(update, sigma).to_event(1), obs=g)

    start = time.perf_counter()
    sampler = numpyro.infer.MCMC(
        numpyro.infer.NUTS(program), num_warmup=args.numpyro_warmup, num_samples=args.draws, num_chains=chains,
        chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    sampler.warmup(jax.random.PRNGKey(0), extra_fields=("potential_energy",))
    jax.block_until_ready(sampler.post_warmup_state.z)
    warm = time.perf_counter()
    seconds = []
    for _ in range(2):  # the first run compiles: what it takes longer is counted as warm-up
        began = time.perf_counter()
        sampler.run(sampler.post_warmup_state.rng_key, extra_fields=("potential_energy",))
        jax.block_until_ready(sampler.get_samples()["z"])
        seconds.append(time.perf_counter() - began)
    z = np.asarray(sampler.get_samples(group_by_chain=True)["z"])
    lp = -np.asarray(sampler.get_extra_fields(group_by_chain=True)["potential_energy"])
    x = np.asarray(mean) + z @ np.asarray(factor).T
    draws = np.concatenate([x, lp[..., None]], -1).astype(np.float64)
    return Run(draws, warm - start + max(0.0, seconds[0] - seconds[1]), seconds[1])


def measure(name: str, chains: int, posterior: str, sampled: Run) -> dict[str, Any]:
    ess = arviz.ess(sampled.draws) / sampled.sampling_s
    total = sampled.draws.shape[1]
    reached, rhat = "", float(np.max(arviz.rhat(sampled.draws))) if chains > 1 else float("nan")
    if rhat < 1.01:
        for part in np.linspace(0.1, 1, 10):
            n = max(8, round(part * total))
            if np.max(arviz.rhat(sampled.draws[:, :n])) < 1.01:
                reached = f"{sampled.warmup_s + sampled.sampling_s * n / total:.1f}"
                break
    return dict(zip(COLUMNS, [
        posterior, name, f"cpu x{os.cpu_count()}", chains, f"{sampled.warmup_s:.1f}", reached, f"{ess.min():.2f}",
        f"{np.median(ess):.2f}", f"{rhat:.4f}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    ], strict=True))  # fmt: skip


def main(args: Settings) -> None:
    believe = functools.partial(attack.believe, programs.load("models", "gaussian"))
    target = attack.from_data(args.data, root=args.data_root, sigma=args.sigma,
                              settings={"widths": args.widths, "activation": args.activation})  # fmt: skip
    model = believe(target)
    double = attack.from_data(args.data, root=args.data_root, sigma=args.sigma, dtype="float64",
                              settings={"widths": args.widths, "activation": args.activation})  # fmt: skip
    jobs: list[tuple[str, int, Callable[[], Run]]] = []
    for name in args.samplers:
        if name == "pplleak":
            jobs.append(("pplleak hmc", 64, lambda: pplleak(target, model, args)))
        elif name == "pyro":
            jobs.append(("Pyro NUTS", 1, lambda: pyro_nuts(double, believe(double), args)))
        else:
            jobs += [(f"NumPyro NUTS, {c} chains", c, lambda c=c: numpyro_nuts(target, model, args, c))
                     for c in args.numpyro_chains]  # fmt: skip
    posterior = f"{args.data} gaussian mlp{args.widths} {args.activation} sigma {args.sigma:g}"
    rows = list(csv.DictReader(args.csv.open())) if args.csv.exists() else []
    new: list[dict[str, Any]] = []
    for name, chains, job in jobs:
        torch.manual_seed(0)
        new.append(measure(name, chains, posterior, job()))
        print(new[-1], flush=True)
        kept = [r for r in rows if (r["posterior"], r["sampler"]) not in {(n["posterior"], n["sampler"]) for n in new}]
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as f:
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(kept + new)
    best = float(new[0]["ess_per_s_median"])
    for row in new[1:]:
        times = best / float(row["ess_per_s_median"])
        print(f"{new[0]['sampler']} / {row['sampler']}: {times:.1f} times its median ESS/s")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
