"""The Gaussian-prior posterior of an MLP, written by hand in JAX: for NumPyro's NUTS and BlackJAX's.

`materialised` is how one would write it: the client's gradient by `jax.grad`, and a Normal around it. `lazy` is the
likelihood of `pplleak.client.update` by hand: ⟨G, δ aᵀ⟩ = δᵀ G a and ‖δ aᵀ‖² = ‖δ‖² ‖a‖², never the gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pplleak.federation.observation import Observation
from pplleak.priors.gaussian import fit_gaussian

ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "gelu": lambda a: jax.nn.gelu(a, approximate=False), "softplus": jax.nn.softplus, "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh, "silu": jax.nn.silu,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Posterior:
    """z ~ Normal(0, I), x = mean + factor z; log_likelihood(x) = log p(g | x) up to a constant."""

    mean: Any
    factor: Any
    log_likelihood: Callable[[Any], Any]

    def log_density(self, z: Any) -> Any:
        return self.log_likelihood(self.mean + self.factor @ z) - 0.5 * jnp.sum(z * z)

    def flat(self, z: Any, lp: Any) -> np.ndarray:
        """z (chains, draws, dim) and log p as (chains, draws, pixels + 1)."""
        x = np.asarray(self.mean) + np.asarray(z) @ np.asarray(self.factor).T
        return np.concatenate([x, np.asarray(lp)[..., None]], -1).astype(np.float64)


def build(observed: Observation, activation: str, lazy: bool) -> Posterior:
    assert observed.labels is not None and observed.public is not None and observed.sigma is not None
    prior = fit_gaussian(observed.public)
    layers = [jnp.array(p.numpy()) for p in observed.client.parameters.values()]
    pairs = list(zip(layers[::2], layers[1::2], strict=True))
    g = [jnp.array(p.numpy()) for p in observed.client.split(observed.g).values()]
    label, sigma = int(observed.labels[0]), observed.sigma
    act = ACTIVATIONS[activation]

    def forward(pairs: list, x: Any, nudges: list | None = None) -> tuple[Any, list]:
        inputs = []
        for k, (weight, bias) in enumerate(pairs):
            inputs.append(x)
            x = weight @ x + bias + (0.0 if nudges is None else nudges[k])
            x = act(x) if k < len(pairs) - 1 else x
        return -jax.nn.log_softmax(x)[label], inputs

    def materialised(x: Any) -> Any:
        update = jax.tree_util.tree_leaves(jax.grad(lambda p: forward(p, x)[0])(pairs))
        return -0.5 * sum(jnp.sum((a - b) ** 2) for a, b in zip(g, update, strict=True)) / sigma**2

    def by_hand(x: Any) -> Any:
        nudges = [jnp.zeros(len(bias)) for _, bias in pairs]
        deltas, inputs = jax.grad(lambda n: forward(pairs, x, n), has_aux=True)(nudges)
        total = sum(jnp.sum(part**2) for part in g)
        for weight, bias, a, d in zip(g[::2], g[1::2], inputs, deltas, strict=True):
            total += jnp.sum(d * d) * (jnp.sum(a * a) + 1) - 2 * jnp.sum(d * (weight @ a + bias))
        return -0.5 * total / sigma**2

    mean, factor = jnp.array(prior.mean.numpy(), jnp.float32), jnp.array(prior.factor.numpy(), jnp.float32)
    return Posterior(mean, factor, by_hand if lazy else materialised)


def numpyro_nuts(posterior: Posterior, chains: int, warmup: int, draws: int) -> tuple[np.ndarray, float, float]:
    """(draws, seconds before sampling, seconds of sampling); chains vectorised."""
    import numpyro
    import numpyro.distributions as dist

    def program() -> None:
        z = numpyro.sample("z", dist.Normal(0, 1).expand([len(posterior.mean)]).to_event(1))
        numpyro.factor("g", posterior.log_likelihood(posterior.mean + posterior.factor @ z))

    start = time.perf_counter()
    sampler = numpyro.infer.MCMC(
        numpyro.infer.NUTS(program), num_warmup=warmup, num_samples=draws, num_chains=chains,
        chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    sampler.warmup(jax.random.PRNGKey(0), extra_fields=("potential_energy",))
    jax.block_until_ready(sampler.post_warmup_state.z)
    warm = time.perf_counter() - start

    def sample() -> None:
        sampler.run(sampler.post_warmup_state.rng_key, extra_fields=("potential_energy",))
        jax.block_until_ready(sampler.get_samples()["z"])

    compiling, seconds = timed_twice(sample)
    lp = -np.asarray(sampler.get_extra_fields(group_by_chain=True)["potential_energy"])
    return posterior.flat(sampler.get_samples(group_by_chain=True)["z"], lp), warm + compiling, seconds


def blackjax_nuts(posterior: Posterior, chains: int, warmup: int, draws: int) -> tuple[np.ndarray, float, float]:
    """The same for BlackJAX: one window adaptation (of one chain), then all chains in one vmap."""
    import blackjax

    start = time.perf_counter()
    adaptation = blackjax.window_adaptation(blackjax.nuts, posterior.log_density)
    keys = jax.random.split(jax.random.PRNGKey(0), chains + 2)
    begin = jax.random.normal(keys[0], (chains, len(posterior.mean)))
    (state, parameters), _ = adaptation.run(keys[1], begin[0], num_steps=warmup)
    kernel = blackjax.nuts(posterior.log_density, **parameters)
    spread = state.position + 0.1 * begin * jnp.sqrt(parameters["inverse_mass_matrix"])

    @jax.jit
    def chain(key: Any, position: Any, steps: Any) -> Any:
        def move(state: Any, key: Any) -> Any:
            state, _ = kernel.step(key, state)
            return state, (state.position, state.logdensity)

        return jax.lax.scan(move, kernel.init(position), jax.random.split(key, len(steps)))

    run = jax.vmap(chain, (0, 0, None))
    burnt, _ = run(keys[2:], spread, jnp.arange(warmup // 4))
    jax.block_until_ready(burnt.position)
    warm = time.perf_counter() - start
    found: list[Any] = []

    def sample() -> None:
        _, out = run(keys[2:], burnt.position, jnp.arange(draws))
        found[:] = jax.block_until_ready(out)

    compiling, seconds = timed_twice(sample)
    return posterior.flat(*found), warm + compiling, seconds


def timed_twice(job: Callable[[], None]) -> tuple[float, float]:
    """What the first run of a job takes longer (it compiles), and the seconds of the second."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - began)
    return max(0.0, seconds[0] - seconds[1]), seconds[1]
