"""Neural posterior estimation: what g says of z is learnt from draws of the program, then corrected (an approximation).

    z, y ~ p(z, y),  g ~ p(g | z, y);     φ* = argmin over φ of −E log q_φ(z | g)  =  argmin of E KL(p(z | g) ‖ q_φ)

No gradient is attacked while it learns, and no slope of the network is climbed: the program's own draws are all that it
needs. Once trained, one q serves every g of the same model, client, noise and labels; it is kept, as a file that runs
no code. q is a flow on a sketch of g, in those coordinates of z that g tells of, begun at the best linear-Gaussian
posterior; the other coordinates stay at the prior (`pplleak.density.estimator`, `pplleak.density.predictive`). Then

    z_p ~ q(z | g),   w_p = p(z_p, g) / q(z_p | g);   draws: the z_p, picked in proportion to w_p

in a few rounds, before each of which the normal that q is made of takes the weighted mean and widths of the last round
(population Monte Carlo, Cappé et al. 2008). The tail of w is smoothed (Vehtari et al. 2024). With many proposals the
draws are those of p(z | g), however badly the network has learnt; how far from that these are, k-hat says: above 0.7
the result is not to be trusted. (A batch whose examples may change places has a copy of every mode for each order, and
one normal bent by a flow is hard put to hold them.)

Source: Papamakarios and Murray 2016, equation 2 (the loss); Greenberg et al. 2019 (flows); Wu et al. 2023 (Learning To
Invert), which learns g -> x as a point.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density, Model, build, estimator, predictive
from pplleak.density.estimator import Estimator
from pplleak.density.refusals import require_possible
from pplleak.density.resampling import next_temperature, resample
from pplleak.density.surrogate import Surrogate
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, collect, diagnostics
from pplleak.priors import _store as store
from pplleak.progress import ProgressBar, silent

BATCH, RATE = 256, 1e-3
FEWEST = 100  # draws of the program
HELD_OUT = 0.1  # share of the draws that judge, and are not learnt from
ENOUGH = 0.1  # nats that leaving coordinates to the prior may miss, on average
KEEP = 0.1  # effective share of the proposals that a round's mean and widths are taken over
HALF = 0.5  # effective share of them that ends the rounds


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    simulations: int = 20000,
    epochs: int = 6,
    features: int = 80,
    latents: int = 64,
    hidden: int = 64,
    proposals: int = 4000,
    rounds: int = 4,
    chains: int = 4,
    draws: int = 500,
    kept: str = "",
) -> Posterior:
    """Independent draws from the learnt posterior, corrected, labelled as the approximation they are. The mode is the
    likeliest of the proposals: nothing is climbed.

    Args:
        simulations: draws of the program that it learns from, where no trained estimator is kept.
        epochs: passes over them. The best on held-out draws is taken, the linear-Gaussian start among them.
        features: numbers of a gradient's sketch, at most.
        latents: coordinates that are learnt, at most; the others stay at the prior.
        hidden: units of the flow's networks.
        proposals: draws that are weighed, a round.
        rounds: of proposals, at most; 0: what the network says, without weights.
        chains: rows the draws are arranged in (they are independent anyway).
        draws: draws a chain.
        kept: file of the trained estimator (.safetensors), read where it is there; by default, beside the priors that
            were fitted on the fly.
    """
    require_positive(simulations=simulations, epochs=epochs, features=features, latents=latents, hidden=hidden,
                     proposals=proposals, chains=chains, draws=draws)  # fmt: skip
    if simulations < FEWEST:
        raise BadInput(f"simulations must be at least {FEWEST}, not {simulations}: fewer draws teach nothing")
    if rounds < 0:
        raise BadInput(f"rounds must not be negative, not {rounds}: it is a number of rounds")
    if isinstance(client, Surrogate):
        raise BadInput("npe climbs no slopes: leave the surrogate out, the network's own kinks are nothing to it")
    density, reasons = build(model, client, observed), []
    learnt = {"simulations": simulations, "epochs": epochs, "features": features, "latents": latents, "hidden": hidden}
    mark = predictive.mark(density, learnt)
    path = Path(kept) if kept else store.cache() / f"npe-{mark}.safetensors"
    if path.is_file():
        q = estimator.load(path, mark, observed.g, density.dim)
    else:
        pyro.set_rng_seed(0)  # not the attack's own: one estimator serves all of them
        q, whole = trained(density, mark, progress=progress, **learnt)
        if whole:
            estimator.save(q, path)
            q = estimator.load(
                path, mark, observed.g, density.dim
            )  # so that the first attack is the same as all later ones
        else:
            reasons.append("interrupted while it learnt: the best estimator so far is taken, and not kept")
    pyro.set_rng_seed(seed)
    found = weighed(density, q, proposals, max(1, rounds))
    if rounds:
        smooth = torch.as_tensor(diagnostics.smoothed(found.log_weights.cpu().numpy())).to(found.z.device)
        picks = resample(smooth.expand(chains, -1))  # in order: a chain takes some of them at random
        picked = torch.stack([row[torch.randint(len(row), (draws,), device=row.device)] for row in picks])
    else:
        picked = torch.randint(proposals, (chains, draws), device=found.z.device)
    return collect(
        density,
        found.z[picked],
        mode=found.z[found.height.argmax()],
        kind="approximation",
        stats={"lp": found.height[picked]},
        log_weights=found.log_weights,
        reasons=reasons,
        attrs={"rounds": found.rounds, "effective_share": found.share, "learnt_latents": q.informed.count,
               "missed_nats": q.informed.missed, "estimator": str(path)},
    )  # fmt: skip


def trained(
    density: Density, mark: str, *, simulations: int, epochs: int, features: int, latents: int, hidden: int,
    progress: ProgressBar = silent,
) -> tuple[Estimator, bool]:  # fmt: skip
    """The estimator that held-out draws like best, and whether all epochs were passed (Ctrl-C ends them early)."""
    sketch, informed = predictive.sketch(density, features), predictive.informed(density, latents, ENOUGH)
    drawn = [(z, sketch(g)) for z, g in predictive.batches(density, simulations, progress, "draws of the program")]
    z, s = (torch.cat([d[k] for d in drawn]) for k in (0, 1))
    judging = max(1, int(HELD_OUT * simulations))
    q = estimator.untrained(sketch, informed, z[judging:], s[judging:], hidden, mark)
    w, c = q.encode(z, s), q.centre(s)
    batches = -(-(simulations - judging) // BATCH)
    climb = torch.optim.AdamW(q.flow.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(climb, epochs * batches)

    def judged() -> float:
        with torch.no_grad():
            return float(q.flow(c[:judging]).log_prob(w[:judging]).mean())

    best, state, whole = judged(), copy.deepcopy(q.flow.state_dict()), True
    try:
        for _ in progress("learning", epochs):
            for picks in (judging + torch.randperm(len(w) - judging, device=w.device)).split(BATCH):
                climb.zero_grad()
                (-q.flow(c[picks]).log_prob(w[picks]).mean()).backward()
                torch.nn.utils.clip_grad_norm_(q.flow.parameters(), 5.0)
                climb.step()
                schedule.step()
            if (now := judged()) > best:
                best, state = now, copy.deepcopy(q.flow.state_dict())
    except KeyboardInterrupt:
        whole = False
    q.flow.load_state_dict(state)
    return q, whole


@dataclass(frozen=True, eq=False)
class Weighed:
    """Proposals z (proposals, dim), log p(z | g) + constant of each, log p − log q, their effective share, rounds."""

    z: Tensor
    height: Tensor
    log_weights: Tensor
    share: float
    rounds: int


@torch.no_grad()
def weighed(density: Density, q: Estimator, proposals: int, rounds: int) -> Weighed:
    """The proposals of the last round, weighed."""
    g = density.observed.g
    mean, sd = (torch.full((density.dim,), value).to(g) for value in (0.0, 1.0))
    for k in range(rounds):
        own = torch.randn(proposals, density.dim).to(g)
        z, log_det = q.decode(mean + sd * own, g)
        height = torch.cat([density(part) for part in z.split(256)])
        require_possible(height)
        log_own = -0.5 * (own.double().square().sum(1) + density.dim * math.log(2 * math.pi))
        log_w = torch.nan_to_num(height, nan=-math.inf) - (log_own - sd.double().log().sum() - log_det)
        share = float(1 / log_w.softmax(0).square().sum() / proposals)
        if share > HALF or k == rounds - 1:
            break
        mean, sd = _moved(mean, sd, own, _tempered(log_w).to(g))
    return Weighed(z, height, log_w, share, k + 1)


def _tempered(log_w: Tensor) -> Tensor:
    """Weights (proposals,) ∝ w^β, with the largest β ≤ 1 that leaves a share of KEEP effective."""
    return next_temperature(lambda beta: (beta * log_w)[None], 0.0, KEEP)[1][0].softmax(0)


def _moved(mean: Tensor, sd: Tensor, own: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and widths of weighted proposals mean + sd·own; the widths as far as there are enough to know them."""
    shift = weights @ own
    variance = weights @ (own - shift).square()
    effective = float(1 / weights.square().sum())
    trust = effective / (effective + len(mean))
    return mean + sd * shift, sd * (trust * variance + 1 - trust).sqrt()


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
