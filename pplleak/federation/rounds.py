"""Federated training: the client's network trained by what its clients send, with or without a defence.

    θ_{t+1} = θ_t − η (1/K) Σ_k g_k      g_k: what client k sends of ∇θ ℓ(x_k, y_k)           (FedSGD)
    θ_{t+1} = θ_t + (1/K) Σ_k g_k        g_k: what it sends of θ_after − θ_before             (FedAvg)

(McMahan et al. 2017, algorithm 1.) Step t draws everything from one generator seeded by (seed, t), so that a run that
was interrupted goes on bit for bit from any of its checkpoints, and a checkpoint is nothing but weights.

DP-SGD (Abadi et al. 2016, algorithm 1) takes every example of the asked client with probability q = B/n, as its
accountant assumes, and divides by B, however many came. A client's examples are its own, so their ε is that of the
steps in which it was asked.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pplleak import channels, runs
from pplleak.client import Client, weights
from pplleak.client.training import LocalTraining
from pplleak.data import Images
from pplleak.errors import BadInput, require_positive
from pplleak.federation import defences, privacy
from pplleak.federation.protection import Protection
from pplleak.progress import ProgressBar, silent
from pplleak.runs import Rows
from pplleak.settings import Named

COLUMNS = {"step": int, "accuracy": float, "loss": float, "epsilon": float | None, "cpu_seconds": float}
LOG, SETTINGS, INTERRUPTED = "log.csv", "train.json", "interrupted"
Row = dict[str, Any]


@dataclass(frozen=True)
class Federation:
    """Who trains on what.

    clients       the training images are dealt out to so many clients
    participants  K, clients asked in each step, taking turns
    batch_size    B, examples that each of them takes
    lr            η, of the server's step along gradients; local training has its own
    delta         δ of the (ε, δ)-differential privacy that DP-SGD is accounted for
    """

    clients: int = 10
    participants: int = 1
    batch_size: int = 32
    lr: float = 0.1
    delta: float = 1e-5

    def __post_init__(self) -> None:
        require_positive(clients=self.clients, participants=self.participants, batch_size=self.batch_size, lr=self.lr)
        if self.participants > self.clients:
            raise BadInput(f"{self.participants} participants a step, but there are only {self.clients} clients")

    def shard(self, examples: int, client: int, seed: int) -> Tensor:
        """Which of the training images a client holds."""
        dealt = torch.randperm(examples, generator=torch.Generator().manual_seed(seed_of(seed, 0)))
        return dealt[client :: self.clients]

    def asked(self, step: int) -> list[int]:
        """The participants of a step, the first being step 1."""
        return [((step - 1) * self.participants + k) % self.clients for k in range(self.participants)]

    def turns(self, steps: int) -> int:
        """How often the client that was asked most often was asked in so many steps."""
        return math.ceil(steps * self.participants / self.clients)


def seed_of(seed: int, step: int) -> int:
    """One seed for each step of a run."""
    return int(np.random.SeedSequence((seed % 2**63, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def milestones(steps: int) -> tuple[int, ...]:
    """The steps whose weights are kept unless others are named: 0, 10, 20, 50, 100, 200, 500, 1000, … and the last."""
    usual = [m * 10**k for k in range(1, 1 + len(str(steps))) for m in (1, 2, 5)]
    return (0, *(s for s in usual if s < steps), *((steps,) if steps else ()))


def epsilon(federation: Federation, protection: Protection, examples: int, steps: int) -> float | None:
    """The ε that DP-SGD has spent on the examples of any one client after so many steps, or DP-FedAvg on all that a
    client holds; None for other defences."""
    if protection.is_channel("dpfedavg"):  # of a user, who takes turns and is not sampled
        noise = protection.filled().settings["noise_multiplier"]
        return privacy.epsilon(noise, 1.0, federation.turns(steps), delta=federation.delta)
    if not protection.is_channel("dpsgd"):
        return None
    smallest = examples // federation.clients  # whose examples take part most often
    rate = federation.batch_size / smallest
    noise = protection.filled().settings["noise_multiplier"]
    return privacy.epsilon(noise, rate, federation.turns(steps), delta=federation.delta)


def step(
    client: Client, images: Images, federation: Federation, protection: Protection, number: int, seed: int
) -> None:
    """One step of training, on the client's weights in place. Leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), defences.trained_on():
        sent = torch.zeros(client.update_size, dtype=client.dtype)
        for k in federation.asked(number):
            mine = federation.shard(len(images), k, seed)
            torch.manual_seed(seed_of(seed, 1 + (number - 1) * federation.clients + k))
            sent += _sent(client, images, mine, federation, protection) / federation.participants
        along = sent / client.local.factor if client.local else -federation.lr * sent
        for p, moved in zip(client.parameters.values(), client.split(along).values(), strict=True):
            p += moved


def _sent(client: Client, images: Images, mine: Tensor, federation: Federation, protection: Protection) -> Tensor:
    """What one client sends of its own images in one step, (D,)."""
    size = federation.batch_size
    if not protection.is_channel("dpsgd"):
        picked = mine[torch.randperm(len(mine))[:size]]
        return protection.share(client, images.x[picked].to(client.dtype), images.y[picked], images.x)
    picked = mine[torch.rand(len(mine)) < size / len(mine)]
    if len(picked):  # the channel divides by those who came
        return protection.share(client, images.x[picked].to(client.dtype), images.y[picked]) * (len(picked) / size)
    settings = protection.filled().settings
    spread = settings["noise_multiplier"] * settings["clip"] / size
    return spread * torch.randn(client.update_size, dtype=client.dtype)


@torch.no_grad()
def evaluate(client: Client, images: Images) -> tuple[float, float]:
    """The share of images that the network classifies rightly, and its mean loss (nats)."""
    logits = torch.cat([client.network(x.to(client.dtype)) for x in images.x.split(500)])
    return float((logits.argmax(-1) == images.y).double().mean()), float(F.cross_entropy(logits, images.y))


def require(client: Client, images: Images, federation: Federation, protection: Protection) -> None:
    """Raise BadInput for a training that cannot be done, before any work is."""
    smallest = len(images) // federation.clients
    if smallest < federation.batch_size:
        raise BadInput(
            f"{len(images)} training examples dealt out to {federation.clients} clients are {smallest} each, fewer "
            f"than a batch of {federation.batch_size}: take fewer clients or a smaller batch"
        )
    if protection.is_channel("dpfedavg"):
        privacy.require_opacus()
    if protection.is_channel("dpsgd"):
        privacy.require_opacus()
        channels.require_examples(client, federation.batch_size)
        if client.local:
            raise BadInput(
                "DP-SGD clips each example's gradient, and local training mixes them: let clients share gradients"
            )


def train(
    client: Client,
    images: Images,
    test: Images,
    federation: Federation,
    protection: Protection,
    out: Path,
    *,
    checkpoints: Sequence[int],
    settings: Mapping[str, Any],
    seed: int = 0,
    progress: ProgressBar = silent,
) -> tuple[list[Row], bool]:
    """Train a client's network, and keep its weights at every checkpoint as a safetensors file of weights.

    Goes on where an earlier run with the same settings stopped. Ctrl-C keeps the weights of the last whole step, until
    the next checkpoint is there.

    Args:
        client: with the weights to start from; they are changed in place. out: a folder.
        images, test: to train on, and to measure accuracy on. checkpoints: steps, ascending.
        settings: what the run is (`record`); another run's folder is refused.

    Returns:
        A row of COLUMNS for each checkpoint, and whether all steps were done.
    """
    in_order(checkpoints)
    require(client, images, federation, protection)
    with runs.claim(out):
        runs.settle(out / SETTINGS, settings, "the checkpoints of a training")
        before, last = log(out), checkpoints[-1]
        kept = _whole(out)
        whole = [s for s in kept if s <= last and all(c in kept for c in checkpoints if c <= s)]
        start = max(whole, default=0)
        rows = [r for r in before if r["step"] in kept]
        if start:
            weights.load(client.network, weights.read(path(out, start))[0], str(path(out, start)))
        spent = next((r["cpu_seconds"] for r in rows if r["step"] == start), 0.0)
        begin = time.process_time()

        def keep(number: int, tensors: Mapping[str, Tensor]) -> None:
            weights.load(client.network, tensors, "the training")
            accuracy, loss = evaluate(client, test)
            row = {
                "step": number, "accuracy": accuracy, "loss": loss,
                "epsilon": epsilon(federation, protection, len(images), number),
                "cpu_seconds": round(spent + time.process_time() - begin, 2),
            }  # fmt: skip
            rows[:] = sorted([*(r for r in rows if r["step"] != number), row], key=lambda r: r["step"])
            metadata = {"step": str(number), "training": json.dumps(dict(settings)), "accuracy": f"{accuracy:.4f}"}
            metadata |= {} if number in checkpoints else {INTERRUPTED: "true"}
            runs.tensors(path(out, number), weights.state(client.network), metadata)
            _rows(out).add([row])  # after the weights: no row tells of weights that a full disk did not take
            if number in checkpoints:
                tidy(number)

        def tidy(number: int) -> None:
            """What an interruption left is of no use once a later checkpoint is there; an undisturbed run has none."""
            for left in [s for s in _steps(out) if s < number and s not in checkpoints]:
                if INTERRUPTED in weights.read(path(out, left))[1]:
                    _rows(out).remove([(left,)])
                    path(out, left).unlink(missing_ok=True)
                    rows[:] = [r for r in rows if r["step"] != left]

        if start in checkpoints:
            tidy(start)
        done = (start, _copy(client))
        try:
            if 0 in checkpoints and 0 not in kept:
                keep(*done)
            for k in progress("training", last - start):
                step(client, images, federation, protection, start + k + 1, seed)
                done = (start + k + 1, _copy(client))
                if done[0] in checkpoints and done[0] not in kept:
                    if not all(t.isfinite().all() for t in done[1].values()):
                        raise BadInput(
                            f"the training diverged before step {done[0]}: take a smaller learning rate or less noise"
                        )
                    keep(*done)
        except KeyboardInterrupt:
            if done[0] not in _whole(out):
                keep(*done)
            return rows, False
        return rows, True


def _copy(client: Client) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in weights.state(client.network).items()}


def record(
    data: str,
    network: Named,
    federation: Federation,
    protection: Protection,
    *,
    local: LocalTraining | None = None,
    seed: int = 0,
    dtype: str = "float32",
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """What a training is: a folder of checkpoints belongs to one such record."""
    made_with = {
        "data": data, "network": network.name, "network_settings": dict(network.settings),
        "defence": str(protection), **asdict(federation), "local": local.to_json() if local else None,
        "seed": seed, "dtype": dtype, "checkpoint": checkpoint,
    }  # fmt: skip
    return runs.settings(made_with)


# -- files -----------------------------------------------------------------------------------------------------------


def path(out: Path, number: int) -> Path:
    """The weights after so many steps."""
    return out / f"step-{number}.safetensors"


def _whole(out: Path) -> list[int]:
    """The steps that have both their weights and their row, ascending; what has only one of them is made again."""
    return sorted(set(_steps(out)) & {r["step"] for r in log(out)})


def _steps(out: Path) -> list[int]:
    return [int(n) for p in out.glob("step-*.safetensors") if (n := p.stem.removeprefix("step-")).isdigit()]


def in_order(checkpoints: Sequence[int]) -> None:
    """Raise BadInput for steps that do not ascend from 0 on."""
    if not checkpoints or list(checkpoints) != sorted(set(checkpoints)) or checkpoints[0] < 0:
        raise BadInput(f"steps must ascend, from 0 on: 0 10 100, not {' '.join(map(str, checkpoints)) or 'none'}")


def log(out: Path) -> list[Row]:
    """The rows of a run, by step; [] where there is none."""
    return sorted(_rows(out).read(), key=lambda r: r["step"])


def _rows(out: Path) -> Rows:
    return Rows(out / LOG, COLUMNS, ("step",))
