"""The attacks of the experiments, each scored on one image.

A baseline is the MAP of a published model with total variation. The Bayes rows share one posterior: its MAP, its
mean, and the centre of the δ-ball that holds the most of its draws. `no_gradient` is what the server knew before: the
mean of the public images of the label.

The chains are those of `inference/hmc.py`, in other coordinates. Noise of 0.1 on an entry tells few directions of an
image, and the prior's coordinates are standard normal: the posterior is round but for these few. `informed` finds them
by Hessian-vector products with a random subspace (Halko et al. 2011, section 4.5), where a whole Hessian costs
hundreds of times as much as a draw.

HMC cannot follow a ReLU network's density across its kinks. The chains therefore run on the network with a softplus
of sharpness `beta` in the place of every ReLU (`pplleak.density.surrogate`): an approximation, marked ≈. k-hat, of
the weights
that carry its draws to the network itself, says in every row how far off it is (above 0.7: far). `--effort.beta 0` runs
the chains on the ReLU network: its Metropolis test takes the network's own density, so that they leave the exact
posterior invariant, but the slopes do not see how the density jumps at a kink, and most trajectories are refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pruning import smoothed
from torch import Tensor

from pplleak import data, programs
from pplleak.density import Density, build
from pplleak.density.hamiltonian import init, step
from pplleak.density.search import maximise
from pplleak.density.step_size import TRAJECTORY, DualAveraging, trajectory_steps
from pplleak.density.whitening import Laplace, whitened
from pplleak.errors import require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect, decisions, metrics
from pplleak.programs import MODEL
from pplleak.settings import Named
from pplleak.studies.attack import attack

Row = dict[str, Any]
BASELINES = ("l2", "l1", "cosine")
BAYES = ("map", "ball", "mean")
ACCEPTANCE, LONGEST = 0.65, 4  # what the step size is tuned for, and the most steps of a trajectory


@dataclass(frozen=True)
class Effort:
    """What an attack may spend: the steps of every search, and the posterior's chains (see the file for `beta`).

    starts: of the search for the MAP. screened: draws of the prior, of which the most probable ones are those starts.
    """

    steps: int = 100
    starts: int = 1
    screened: int = 1
    beta: float = 300.0
    chains: int = 8
    warmup: int = 12
    draws: int = 32
    rank: int = 32

    def __post_init__(self) -> None:
        require_positive(**{n: v for n, v in asdict(self).items() if n != "beta"})


def score(x: np.ndarray, observed: Observation) -> Row:
    """PSNR and SSIM of a reconstruction (1, *input_shape)."""
    assert observed.truth is not None
    truth = observed.truth.numpy()
    return {"psnr": float(metrics.psnr(x, truth)[0]), "ssim": float(metrics.ssim(x, truth)[0])}


def no_gradient(observed: Observation, root: Path | None) -> Row:
    """The mean of the public images of the label; of all of them, where the label has none."""
    assert observed.labels is not None
    index = observed.provenance["index"]
    public = data.public(observed.provenance["data"], root, without=range(index, index + 1))
    x = average(public.x, public.y, int(observed.labels))
    return {"attack": "no_gradient", **score(x[None].numpy(), observed), "seconds": 0.0}


def average(public: Tensor, labels: Tensor, label: int) -> Tensor:
    mine = public[labels == label]
    return (mine if len(mine) else public).mean(0)


def baseline(name: str, observed: Observation, settings: Mapping[str, float], effort: Effort, seed: int) -> Row:
    """The MAP of `models/NAME.py`; settings: `tv`, the weight of the smoothness, and Adam's `lr`."""
    start = time.process_time()
    found = attack.attack(
        observed, name, "map", beliefs={"tv": settings["tv"]},
        settings={"lr": settings["lr"], "steps": effort.steps}, seed=seed,
    ).whole()  # fmt: skip
    return {"attack": name, **score(found.mode, observed), "seconds": time.process_time() - start}


def density_of(observed: Observation, prior: str | Named) -> Density:
    """log p(z | g) of the Bayes-optimal adversary: a prior, and the observation's own channel."""
    bound = attack.believe(programs.load("models", MODEL), observed, {"prior": prior})
    return build(bound, observed.client, observed)


def climb(density: Density, lr: float, effort: Effort, seed: int, jacobian: bool = False) -> Tensor:
    """The ends of the search for the MAP, best first, (starts, dim); Ctrl-C ends it with nothing.

    A trained network's gradient is large at an image of another label, and a search that begins at one stays there, far
    below the peak. To look at many beginnings first costs less than to climb from them.
    """
    pyro.set_rng_seed(seed)
    begin = density.sample_prior(max(effort.starts, effort.screened))
    if effort.screened > effort.starts:
        with torch.no_grad():
            heights = torch.cat([density(part, jacobian=jacobian) for part in begin.split(32)])
        begin = begin[torch.nan_to_num(heights, nan=-math.inf).argsort(descending=True)[: effort.starts]]
    return maximise(density, begin=begin, steps=effort.steps, lr=lr, jacobian=jacobian).whole().z


def informed(density: Density, z: Tensor, rank: int) -> Laplace:
    """Coordinates around z (dim,) in which the posterior is round: H = I + Σ_k (λ_k − 1) v_k v_kᵀ.

    H is minus the Hessian of the log-density. Its `rank` leading directions are those of a random subspace that H − I
    is applied to three times; in all others it is taken to be the prior's, the identity.
    """

    def bent(directions: Tensor) -> Tensor:
        return torch.cat([product(part) for part in directions.split(8)])  # more take memory, and no less time each

    def product(directions: Tensor) -> Tensor:
        copies = z.expand(len(directions), -1).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(density(copies).sum(), copies, create_graph=True)
        return -torch.autograd.grad((gradient * directions).sum(), copies)[0]

    basis = torch.linalg.qr(torch.randn(len(z), min(rank, len(z)), dtype=z.dtype))[0]
    for _ in range(2):
        basis = torch.linalg.qr((bent(basis.mT) - basis.mT).mT)[0]
    small = (basis.mT @ bent(basis.mT).mT).double()
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    directions = basis.double() @ vectors
    widths = values.abs().clamp(min=1).rsqrt()
    factor = torch.eye(len(z), dtype=torch.float64) + directions * (widths - 1) @ directions.mT
    return Laplace(z, factor.to(z.dtype), float(widths.log().sum()), int((values <= 0).sum()))


def sample(density: Density, mode: Tensor, begin: Tensor, effort: Effort, seed: int) -> Posterior:
    """Draws of HMC in the coordinates of `informed`; chains start in a standard normal cloud around `begin` (dim,)."""
    pyro.set_rng_seed(seed)
    laplace = informed(density, begin, effort.rank)
    w = torch.randn(effort.chains, density.dim, dtype=begin.dtype)
    potential = whitened(density.recorded(effort.chains), laplace)
    state, tuner = init(potential, w), DualAveraging.start(TRAJECTORY, ACCEPTANCE)
    size, number = TRAJECTORY, 1
    z, energies, acceptance = [], [], []
    for t in range(effort.warmup + effort.draws):
        state, info = step(potential, state, size * float(0.8 + 0.4 * torch.rand(())), number)
        if t < effort.warmup:
            tuner = tuner.update(float(info.acceptance.mean()))
            last = t == effort.warmup - 1
            size = min(TRAJECTORY, math.exp(tuner.log_average if last else tuner.log_step))
            number = min(LONGEST, trajectory_steps(size))
            continue
        z.append(laplace.decode(state.w))
        energies.append(state.energy)
        acceptance.append(info.acceptance)
    stats = {"lp": -torch.stack(energies, 1), "acceptance_rate": torch.stack(acceptance, 1)}
    return collect(density, torch.stack(z, 1), mode=mode, kind="sampler", stats=stats)


def bayes(
    observed: Observation,
    prior: str | Named,
    lr: float,
    deltas: Sequence[float],
    effort: Effort,
    seed: int,
) -> tuple[list[Row], Posterior]:
    """Rows of the MAP, of the posterior mean, and of the ball of every δ (RMS over the pixels); and the posterior.

    Each row's seconds are what it takes alone: the mean and the ball begin at the MAP, too.
    """
    density = density_of(observed, prior)  # fits a prior that is not there yet, and keeps it
    clock = time.process_time()
    mode = climb(density, lr, effort, seed)[0]
    rows = [{"attack": "map", **score(density.images(mode[None])[0][0].numpy(), observed)}]
    rows[0]["seconds"] = time.process_time() - clock
    begin = mode
    if density.bounded:  # the coordinates' own maximum lies where the chains go, that of bounded sites at their ends
        begin = climb(density, lr, effort, seed, jacobian=True)[0]
    if effort.beta and observed.client.kinks:
        density = density_of(replace(observed, client=smoothed(observed.client, effort.beta)), prior)
    found = sample(density, mode, begin, effort, seed).with_(truth=observed.truth.numpy())
    seconds = time.process_time() - clock
    rows.append({"attack": "mean", **score(found.mean, observed), "seconds": seconds, **honesty(found)})
    parts = decisions.split(found.draws)
    root = float(np.sqrt(found.mean.size))
    for delta in deltas:
        x = decisions.ball(parts, found.mode, delta * root)
        rows.append({"attack": "ball", **score(x, observed), "seconds": seconds, "delta": delta})
    return rows, found


def decided(rows: Sequence[Row]) -> list[Row]:
    """The rows of one adversary, where `attack` says no more than which decision was taken."""
    return [{"decision": row["attack"], **{n: v for n, v in row.items() if n != "attack"}} for row in rows]


def honesty(found: Posterior) -> Row:
    """What the posterior says of itself, beside what is true: coverage, and the PSNR that it expects of its mean."""
    assert found.truth is not None
    accepted = found.stats.get("acceptance_rate")  # `elliptical` moves until it has come somewhere
    return {
        "coverage_90": metrics.coverage(found.draws, found.truth),
        "psnr_claimed": float(-10 * np.log10(np.mean(found.sd.astype(np.float64) ** 2))),
        "rhat_max": found.rhat_max,
        "khat": found.khat,
        "acceptance": float(accepted.mean()) if accepted is not None else None,
    }
