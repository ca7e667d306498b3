"""Does any adversary cross a bound? Inputs and gradients drawn from the model, attacked by its own posterior.

    uv run benchmarks/bounds.py --data mnist --data-root DIR

E‖x̂ − x‖² of an adversary against the van Trees bound on six clients: `linear_gaussian` behind softmax regression,
where the two are equal (x̂ the exact posterior mean); 8x8 digits under the Gaussian prior behind a perceptron and a
CNN (hmc's posterior mean), the CNN also after training; the paper's CNN on MNIST, with GELU for its ReLU, whose kinks
have no Fisher information (x̂ the MAP: a mean would take hours). `expected` is the mean of the posterior's own
variance: the same number, with less noise, if the posterior is right. Then DP-SGD at five noise multipliers against
ReRo: x̂ is the better of the posterior mean and the δ-ball centre, the posterior that of 20,000 prior draws weighed
by the channel (exact in the limit; the worst effective sample size is printed).

Every draw is appended to bounds_draws.csv, and a run with the same files goes on where it stopped; bounds.csv and
bounds.png are made from them. `cpu_seconds` are those of one thread.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from pplleak import channels, data, density, programs, runs
from pplleak.federation import rounds
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.rounds import Federation
from pplleak.federation.scenario import Scenario, client_of, observe
from pplleak.models import linear_gaussian
from pplleak.programs import MODEL
from pplleak.progress import bar
from pplleak.settings import Named
from pplleak.studies.attack import attack
from pplleak.studies.risk import bounds, rero, risk

DRAWN = [
    "case",
    "draw",
    "mean",
    "ball",
    "ess",
    "expected",
    "cpu_seconds",
]  # squared errors of the decisions, over all pixels
COLUMNS = ["case", "bound", "at", "adversary", "realised", "realised_low", "realised_high", "expected",
           "expected_se", "limit", "limit_se", "draws", "holds", "cpu_seconds"]  # fmt: skip
MULTIPLIERS = (0.3, 0.5, 0.7, 1.0, 2.0)
PARTICLES, TRUTHS, LABEL = 20_000, 2000, 3
CNN = {"channels": (4, 8), "width": 16, "activation": "gelu"}
HMC = {"chains": 16, "draws": 60, "warmup": 60, "starts": 2, "steps": 150}


@dataclasses.dataclass(frozen=True)
class Case:
    """A client, a model and the adversary's inference; `exact` is the closed form.

    fisher: draws of the prior that the bound averages over. trained: steps of `pplleak train` behind the weights.
    """

    said: str
    model: str
    network: str
    settings: dict[str, Any]
    sigma: float
    inference: str
    options: dict[str, Any]
    data: str = "digits"
    fisher: int = 20
    trained: int = 0


CASES = [
    Case("softmax regression, linear-Gaussian", "linear_gaussian", "linear", {}, 0.1, "exact", {}),
    Case("perceptron, 8x8", MODEL, "mlp", {}, 0.1, "hmc", HMC),
    Case("CNN, 8x8", MODEL, "convnet", CNN, 0.01, "hmc", HMC),
    Case("the same CNN, less noise", MODEL, "convnet", CNN, 0.0003, "hmc", HMC, fisher=100),
    Case("the same CNN, trained", MODEL, "convnet", CNN, 0.03, "hmc", HMC, fisher=200, trained=2000),
    Case("the paper's CNN with GELU, MNIST", MODEL, "convnet", {"activation": "gelu"}, 0.03, "map",
         {"starts": 1, "steps": 300}, "mnist", 4),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    data: str = "digits"
    """mnist adds the last client."""
    data_root: Path | None = None
    linear: int = 1000
    """Draws of the linear-Gaussian client."""
    sampled: int = 16
    """Draws of each 8x8 client."""
    mnist: int = 8
    """Draws of the MNIST client."""
    private: int = 1000
    """Draws at each noise multiplier, at most TRUTHS."""
    results: Path = Path("benchmarks/results")


def append(path: Path, row: dict[str, Any]) -> None:
    runs.Rows(path, DRAWN, ("case", "draw")).add([row])


def of(path: Path, case: str) -> list[dict[str, str]]:
    return [r for r in runs.read(path) if r["case"] == case]


def base_of(case: Case, args: Settings) -> Observation:
    scenario = Scenario(
        case.data, args.data_root, network=Named(case.network, case.settings),
        protection=Protection.parse(f"gaussian:sigma={case.sigma}"),
        dtype="float64" if case.data == "digits" else "float32",
    )  # fmt: skip
    if not case.trained:
        return observe(scenario)
    with tempfile.TemporaryDirectory() as folder:
        return observe(dataclasses.replace(scenario, checkpoint=trained(case, args, Path(folder))))


def trained(case: Case, args: Settings, folder: Path) -> Path:
    """Weights after some steps; a network that is sure of some images and not of others leaks unevenly."""
    images, private = data.public(case.data, args.data_root), data.private(case.data, args.data_root)
    client = client_of(Scenario(case.data, args.data_root, network=Named(case.network, case.settings)))
    rounds.train(
        client, images, private, Federation(clients=1), Protection(), folder, checkpoints=[case.trained], settings={}
    )
    return rounds.path(folder, case.trained)


def squares(case: Case, count: int, args: Settings, path: Path) -> dict[str, Any]:
    """‖x̂ − x‖² at draws from the model, and the van Trees bound."""
    done = len(of(path, case.said))
    base = base_of(case, args)
    for draw in bar(case.said, count):
        if draw < done:
            continue
        start = time.process_time()
        observed = risk.from_model(base, case.model, {}, 1000 + draw)
        if case.inference == "exact":
            exact = linear_gaussian.exact_posterior(observed.client, observed, sigma=case.sigma)
            found, expected = exact.mean.numpy(), float(exact.covariance.trace())
        else:
            posterior = attack.attack(observed, case.model, case.inference, settings=case.options, seed=draw).whole()
            found = posterior.mean
            expected = float((posterior.sd.astype(np.float64) ** 2).sum()) if posterior.kind == "sampler" else ""
        square = float(((found.reshape(-1) - observed.truth.double().numpy().reshape(-1)) ** 2).sum())
        append(path, {"case": case.said, "draw": draw, "mean": square, "expected": expected,
                      "cpu_seconds": time.process_time() - start})  # fmt: skip
    rows = of(path, case.said)[:count]
    start = time.process_time()
    d = density.build(attack.believe(programs.load("models", case.model), base), base.client, base)
    limit = bounds.van_trees(d, case.fisher, progress=bar)
    values = np.array([float(r["mean"]) for r in rows])
    se = values.std(ddof=1) / math.sqrt(len(values))
    seconds = sum(float(r["cpu_seconds"]) for r in rows) + time.process_time() - start
    mean = float(values.mean())
    own = np.array([float(r["expected"]) for r in rows if r["expected"]])
    expected = [float(own.mean()), float(own.std(ddof=1)) / math.sqrt(len(own))] if len(own) else ["", ""]
    holds = mean > limit.square - 5 * math.hypot(se, limit.se)
    return row(case.said, "van Trees", f"sigma {case.sigma:g}", case.inference, mean, mean - 1.96 * se,
               mean + 1.96 * se, *expected, limit.square, limit.se, len(rows), holds, seconds)  # fmt: skip


def row(*values: Any) -> dict[str, Any]:
    return dict(zip(COLUMNS, [f"{v:.5g}" if isinstance(v, float) else v for v in values], strict=True))


def private(count: int, args: Settings, path: Path) -> list[dict[str, Any]]:
    """Success within δ behind DP-SGD, and ReRo; δ is where a twentieth of the prior lies around its mean."""
    protection = Protection.parse("dpsgd:noise_multiplier=1.0")
    base = observe(Scenario("digits", network=Named("linear"), protection=protection))
    d = density.build(attack.believe(programs.load("models", MODEL), base), base.client, base)
    torch.manual_seed(0)
    with torch.no_grad():
        x, _ = d.images(d.sample_prior(2 * PARTICLES + TRUTHS))
        particles, held, truths = x.split([PARTICLES, PARTICLES, TRUTHS])
        y = torch.full((1,), LABEL)
        clipped = [channels.DPSGD(base.client.update(part, y.expand(len(part), 1)), noise_multiplier=1.0).clipped.update
                   .materialise() for part in (particles, truths)]  # fmt: skip
    u, sent = (c.double().numpy() for c in clipped)
    norms = (u**2).sum(1)
    flat = particles.double().numpy().reshape(PARTICLES, -1)
    delta = float(np.quantile(np.sqrt(((flat - flat.mean(0)) ** 2).sum(1)), 0.05))
    kappa = rero.prior_mass(held.double().numpy()[:, 0], delta)
    rows = []
    for z in MULTIPLIERS:
        case = f"DP-SGD {z:g}"
        done = len(of(path, case))
        for draw in bar(case, count):
            if draw < done:
                continue
            start = time.process_time()
            g = sent[draw] + z * np.random.default_rng(draw).standard_normal(u.shape[1])
            log_w = (u @ g - norms / 2) / z**2
            w = np.exp(log_w - log_w.max())
            w /= w.sum()
            mean = w @ flat
            truth = truths[draw].double().numpy().reshape(-1)
            append(path, {"case": case, "draw": draw, "mean": float(((mean - truth) ** 2).sum()),
                          "ball": float(((ball(flat, w, mean, delta) - truth) ** 2).sum()), "ess": 1 / (w**2).sum(),
                          "cpu_seconds": time.process_time() - start})  # fmt: skip
        mine = of(path, case)[:count]
        print(f"{case}: worst ESS {min(float(r['ess']) for r in mine):.0f}")
        hits = {n: sum(float(r[n]) <= delta**2 for r in mine) for n in ("mean", "ball")}
        best = max(hits, key=hits.__getitem__)
        low, high = risk.interval(hits[best], len(mine))
        limit = rero.gaussian(kappa.upper, z)
        seconds = sum(float(r["cpu_seconds"]) for r in mine)
        rows.append(row(case, "ReRo", f"noise multiplier {z:g}, kappa {kappa.value:.4f} <= {kappa.upper:.4f}",
                        f"posterior {best}", hits[best] / len(mine), low, high, "",
                        "", limit, "", len(mine), high < limit, seconds))  # fmt: skip
    return rows


def ball(x: np.ndarray, w: np.ndarray, start: np.ndarray, delta: float, steps: int = 20) -> np.ndarray:
    """Mean shift with weights: the centre of a ball that holds much of the posterior."""
    best, most, centre = start, -1.0, start
    for _ in range(steps):
        inside = w * (((x - centre) ** 2).sum(1) <= delta**2)
        mass = inside.sum()
        if mass <= most:
            break
        best, most = centre, mass
        centre = inside @ x / mass if mass > 0 else centre
    return best


def picture(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(11.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    ink, blue, bad = "#333333", "#1f6feb", "#b42318"
    mine = [r for r in rows if r["bound"] == "van Trees"]
    left.axvspan(0.5, 1, color=bad, alpha=0.10, lw=0)
    left.axvline(1, color=bad, lw=1.2)
    for k, r in enumerate(reversed(mine)):
        limit = float(r["limit"])
        low, at, high = (float(r[c]) / limit for c in ("realised_low", "realised", "realised_high"))
        left.errorbar(at, k, xerr=[[at - low], [high - at]], fmt="o", color=blue, capsize=3)
        if r["expected"] != "":
            own, error = float(r["expected"]) / limit, float(r["expected_se"]) / limit
            left.errorbar(own, k - 0.22, xerr=1.96 * error, fmt="D", ms=4, mfc="white", color=ink, capsize=3)
        left.annotate(f"{at:.3f}", (at, k), (0, 8), textcoords="offset points", ha="center", fontsize=8, color=ink)
    left.set_yticks(range(len(mine)), [f"{r['case']}\n({r['adversary']}, {r['draws']} draws)" for r in reversed(mine)],
                    fontsize=8)  # fmt: skip
    left.set_ylim(-0.6, len(mine) - 0.2)
    left.set_xscale("log")
    top = max(float(r["realised_high"]) / float(r["limit"]) for r in mine)
    left.set_xlim(0.6, 1.15 * top)
    ticks = [t for t in (0.6, 1, 1.5, 2, 3, 4, 6, 10, 20, 40) if t < 1.15 * top]
    left.set_xticks(ticks, [f"{t:g}" for t in ticks])
    left.minorticks_off()
    left.text(0.02, 0.98, "no adversary", ha="left", va="top", fontsize=8, color=bad, transform=left.transAxes)
    left.set_title("Squared error of the adversary, in units of the least one (van Trees)", fontsize=9, loc="left")
    left.set_xlabel("dots: realised; diamonds: what its own posterior expects (the same, with less noise)", fontsize=8)
    mine = [r for r in rows if r["bound"] == "ReRo"]
    z = [float(r["case"].split()[1]) for r in mine]
    limit, at, low, high = ([float(r[c]) for r in mine] for c in ("limit", "realised", "realised_low", "realised_high"))
    right.fill_between(z, limit, 1, color=bad, alpha=0.10, lw=0)
    right.plot(z, limit, color=bad, lw=1.4)
    right.errorbar(z, at, yerr=[np.subtract(at, low), np.subtract(high, at)], fmt="o", color=blue, capsize=3)
    right.axhline(float(mine[0]["at"].split("kappa ")[1].split()[0]), color="#8a8a8a", lw=1, ls="--")
    right.text(z[-1], 0.055, "without any gradient", ha="right", va="bottom", fontsize=8, color="#8a8a8a")
    right.text(
        0.97, 0.97, "no adversary (ReRo)", ha="right", va="top", fontsize=8, color=bad, transform=right.transAxes
    )
    right.annotate("realised", (z[0], at[0]), (8, -3), textcoords="offset points", fontsize=8, color=blue)
    right.set_xscale("log")
    right.set_xticks(z, [f"{v:g}" for v in z])
    right.minorticks_off()
    right.set_ylim(0, 1)
    right.set_xlabel("noise multiplier of DP-SGD", fontsize=8.5)
    right.set_title("Share of images that are reconstructed within δ", fontsize=9, loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    path = args.results / "bounds_draws.csv"
    counts = [args.linear, *[args.sampled] * 4, args.mnist]
    rows = [squares(case, count, args, path) for case, count in zip(CASES, counts, strict=True)
            if case.data in ("digits", args.data)]  # fmt: skip
    rows += private(args.private, args, path)
    runs.table(args.results / "bounds.csv", rows, COLUMNS)
    runs.figure(args.results / "bounds.png", picture(rows), dpi=130)
    for r in rows:
        print(", ".join(f"{n} {v}" for n, v in r.items()))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
