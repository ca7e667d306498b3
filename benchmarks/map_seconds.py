"""How long does a point attack take to 30 dB? The MAP by Adam, L-BFGS and Newton, beside a peer's attack.

    uv run --with breaching==0.1.2 benchmarks/map_seconds.py --data-root ../shared/data

The first images, the labels known, the paper's CNN, the gradient shared with noise of a hundredth of its rms entry.
Every attack climbs from one start, on one thread, and is stopped at the first iterate of 30 dB or when `--seconds` are
over. What it takes to look at an iterate is not counted.

    breaching   `invertinggradients` of breaching 0.1.2 (cosine similarity, total variation, signed Adam); on grey
                images without the total variation, which knows three colours alone
    adam, lbfgs `map` with the Gaussian prior of public images, by these optimizers; newton: `climb_by_newton`

seconds: to 30 dB, empty where it did not get there; best: the highest PSNR of an iterate; steps: evaluations.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib.util
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import torch
import tyro
from torch import Tensor, nn

from pplleak import runs
from pplleak.density import Density, whitening
from pplleak.density import build as posterior
from pplleak.density.search import maximise
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.models import optimal
from pplleak.settings import Named

COLUMNS = {
    "data": str, "activation": str, "index": int, "attack": str, "seconds": float | None, "best": float, "steps": int,
}  # fmt: skip
GOAL = 30.0  # dB
RATIO = 0.01  # σ in units of the gradient's rms entry


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path = Path("data")
    data: tuple[str, ...] = ("mnist", "cifar10")
    activations: tuple[str, ...] = ("relu", "gelu")
    count: int = 3
    seconds: float = 15.0
    steps: int = 400
    """Of Adam, whose rate falls to nothing over them (`map` has 1000, the search that samplers begin with 400)."""
    attacks: tuple[str, ...] = ("breaching", "adam", "lbfgs", "newton")
    csv: Path = Path("benchmarks/results/map_seconds.csv")


class Done(Exception):
    pass


class Watch:
    """Looks at every iterate, with the clock stopped, and ends an attack at 30 dB or when its time is up."""

    def __init__(self, truth: Tensor, limit: float) -> None:
        self.truth, self.limit, self.begun = truth, limit, time.perf_counter()
        self.best, self.steps, self.reached = -math.inf, 0, None

    def __call__(self, image: Callable[[], Tensor]) -> None:
        now = time.perf_counter()
        self.steps += 1
        error = float((image().detach().reshape(self.truth.shape) - self.truth).square().mean())
        self.best = max(self.best, -10 * math.log10(max(error, 1e-12)))
        if self.best >= GOAL:
            self.reached = now - self.begun
        if self.reached is not None or now - self.begun > self.limit:
            raise Done
        self.begun += time.perf_counter() - now


def watched(density: Density, watch: Watch) -> Density:
    """The density, whose every slope is seen."""

    class Watched(Density):
        def value_and_grad(self, z: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
            watch(lambda: density.images(z.detach()[:1])[0])
            return super().value_and_grad(z, **how)

    return Watched(**vars(density))


def breaching(observed: Observation, watch: Watch) -> None:
    import breaching as peer

    client = observed.client
    cfg = peer.get_attack_config("invertinggradients")
    if client.input_shape[0] != 3:
        cfg.regularization = {}
    network = copy.deepcopy(client.network).requires_grad_()
    attacker = peer.attacks.prepare_attack(network, nn.CrossEntropyLoss(), cfg)
    own = attacker._compute_objective

    def objective(candidate: Tensor, *rest: Any) -> Any:
        watch(lambda: candidate)
        return own(candidate, *rest)

    attacker._compute_objective = objective
    shape = client.input_shape
    about = SimpleNamespace(shape=shape, mean=[0.0] * shape[0], std=[1.0] * shape[0], classes=client.num_classes,
                            modality="vision", task="classification")  # fmt: skip
    payload = {"parameters": list(network.parameters()), "buffers": list(network.buffers()),
               "metadata": about}  # fmt: skip
    shared = {"gradients": [g.clone() for g in client.split(observed.g).values()], "buffers": None,
              "metadata": {"num_data_points": 1, "labels": observed.labels, "local_hyperparams": None}}  # fmt: skip
    attacker.reconstruct([payload], [shared], {}, dryrun=False)


def attacks(observed: Observation, density: Density, steps: int) -> dict[str, Callable[[Watch], Any]]:
    def newton(watch: Watch) -> None:
        whitening.climb_by_newton(watched(density, watch), density.sample_prior(1)[0], 50, jacobian=False)

    def climb(optimizer: str, watch: Watch) -> None:
        maximise(watched(density, watch), starts=1, steps=steps if optimizer == "adam" else 4000, optimizer=optimizer)  # type: ignore[arg-type]

    ours = {name: functools.partial(climb, name) for name in ("adam", "lbfgs")}
    peer = {"breaching": functools.partial(breaching, observed)} if importlib.util.find_spec("breaching") else {}
    return {**peer, **ours, "newton": newton}


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    rows = runs.Rows(args.csv, COLUMNS, ("data", "activation", "index", "attack"))
    for name, activation in itertools.product(args.data, args.activations):
        for index in range(args.count):
            network = Named("convnet", {"activation": activation})
            clean = observe(Scenario(name, args.data_root, index, network=network, protection=Protection()))
            sigma = RATIO * float(clean.g.double().square().mean().sqrt())
            protection = Protection.parse(f"gaussian:sigma={sigma}")
            observed = observe(Scenario(name, args.data_root, index, network=network, protection=protection))
            model = functools.partial(optimal.model, sigma=sigma, reference=observed.public)
            density = posterior(model, observed.client, observed)
            for attack, run in attacks(observed, density, args.steps).items():
                if attack not in args.attacks:
                    continue
                pyro.set_rng_seed(0)
                assert observed.truth is not None
                watch = Watch(observed.truth, args.seconds)
                with contextlib.suppress(Done):
                    run(watch)
                made = {"data": name, "activation": activation, "index": index, "attack": attack,
                        "seconds": watch.reached, "best": watch.best, "steps": watch.steps}  # fmt: skip
                rows.add([made])
                taken = "not reached" if watch.reached is None else f"{watch.reached:.2f} s"
                print(
                    f"{name} {index}, {activation}, {attack}: {taken}, best {watch.best:.1f} dB, {watch.steps} steps",
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
