"""Pyro's own No-U-Turn sampler, one chain after another: the slow reference.

`pyro.infer.NUTS` (Hoffman & Gelman 2014) on the model file as it stands, with nothing of pplleak's around it but the
loop that shows its progress. Unknown labels are enumerated by Pyro.
"""

from __future__ import annotations

import functools
import warnings

import pyro
import torch
from pyro import poutine
from pyro.infer import NUTS
from torch import Tensor

from pplleak.client import Client, distrust
from pplleak.density import Density, Model, build
from pplleak.density.decrement import settled
from pplleak.density.search import maximise
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect
from pplleak.progress import ProgressBar, silent


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    chains: int = 4,
    draws: int = 250,
    warmup: int = 200,
    full_mass: bool = False,
    max_tree_depth: int = 10,
    starts: int = 8,
    steps: int = 400,
) -> Posterior:
    """Draws from p(x, y | g). Ctrl-C keeps the chains that are complete.

    Args:
        chains: Markov chains, run one after another; each starts at another end of the search for the MAP.
        draws: draws a chain, after warm-up.
        warmup: trajectories that tune the step size and the mass matrix and are thrown away.
        full_mass: adapt a dense mass matrix instead of a diagonal one.
        max_tree_depth: a trajectory has at most 2 ** max_tree_depth leapfrog steps.
        starts: prior draws the search for the MAP starts from.
        steps: its Adam steps.
    """
    require_positive(
        chains=chains, draws=draws, warmup=warmup, max_tree_depth=max_tree_depth, starts=starts, steps=steps
    )
    pyro.set_rng_seed(seed)
    density = build(model, client, observed)
    found = maximise(density, starts=max(starts, 2), steps=steps, progress=progress).whole()
    data = {"g": observed.g} | ({} if observed.labels is None else {"y": observed.labels})
    conditioned = poutine.condition(model, data=data)
    near = found.z[found.value > found.value[0] - 10]
    mode, left = settled(functools.partial(density, jacobian=False), found.z[0])
    kept: list[tuple[Tensor, Tensor]] = []
    reasons = list(distrust(client, "NUTS"))
    for reason in reasons:
        warnings.warn(reason, stacklevel=2)  # before the work, not only after it
    try:
        for chain in range(chains):
            kernel = NUTS(conditioned, full_mass=full_mass, max_tree_depth=max_tree_depth)
            start = density.constrain(near[chain % len(near)][None])[0]
            kept.append(_chain(kernel, density, client, observed, start, draws, warmup, chain, progress))
    except KeyboardInterrupt:
        if not kept:
            raise
        reasons.append(f"interrupted: {len(kept)} of {chains} chains were kept")
    reasons += left.doubts
    z, diverging = (torch.stack(parts) for parts in zip(*kept, strict=True))
    with torch.no_grad():
        lp = torch.cat([density(part) for part in z.flatten(0, 1).split(256)])
    return collect(
        density,
        z,
        mode=mode,
        kind="sampler",
        stats={"lp": lp.unflatten(0, z.shape[:2]), "diverging": diverging},
        reasons=reasons,
        attrs={"nats_left": left.number},
    )


def _chain(
    kernel: NUTS,
    density: Density,
    client: Client,
    observed: Observation,
    start: dict[str, Tensor],
    draws: int,
    warmup: int,
    chain: int,
    progress: ProgressBar,
) -> tuple[Tensor, Tensor]:
    """One chain: z (draws, dim) and whether each transition diverged (draws,)."""
    kernel.initial_params = {site.name: site.transform.inv(start[site.name][0]).detach() for site in density.sites}
    kernel.setup(warmup, client, observed.batch_size)
    params, z = kernel.initial_params, []
    for t in progress(f"NUTS chain {chain + 1}", warmup + draws):
        params = kernel.sample(params)
        if t >= warmup:
            values = {s.name: s.transform(params[s.name].detach())[None] for s in density.sites}
            z.append(density.unconstrain(values)[0])
    diverging = torch.zeros(draws, dtype=torch.bool)
    diverging[[t for t in kernel.diagnostics()["divergences"] if t < draws]] = True
    kernel.cleanup()
    return torch.stack(z), diverging


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
