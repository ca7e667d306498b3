"""Local training as DataLoaders and optimisers do it: against torch.optim itself, step by step, in float64."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command_line import changed, one_line, run
from conftest import batch_of, tiny
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from pplleak.cli import _named as named
from pplleak.client import Client, optimisers
from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput
from pplleak.federation.stored import load
from pplleak.settings import Named

SHAPE = (1, 2, 2)
TORCHS: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
WALK = 50


def client_of(training: LocalTraining) -> Client:
    return replace(tiny("mlp", SHAPE, activation="tanh"), local=training, path="vmap")


def scheduler(training: LocalTraining, optimizer: Any, steps: int, epochs: int) -> tuple[Any, str]:
    """torch's own, and after what it is stepped."""
    name, given = training.schedule.name, dict(training.schedule.settings)
    per = given.pop("per", "step")
    if name == "cosine":
        length = given["T_max"] or (steps if per == "step" else epochs)
        return lr_scheduler.CosineAnnealingLR(optimizer, **{**given, "T_max": length}), per
    kinds = {"step": lr_scheduler.StepLR, "exponential": lr_scheduler.ExponentialLR}
    return (kinds[name](optimizer, **given) if name in kinds else lr_scheduler.ConstantLR(optimizer, 1.0)), per


def loaded(training: LocalTraining, x: Tensor, y: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    """The batches of each epoch; of steps, which go round and round, those of all."""
    if training.epochs is not None:
        loader = DataLoader(TensorDataset(x, y), training.batch_size or len(x), drop_last=training.drop_last)
        return [list(loader) for _ in range(training.epochs)]
    size = training.batch_size or len(x)
    picked = [[k % len(x) for k in range(s * size, (s + 1) * size)] for s in range(training.steps)]
    return [[(x[p], y[p]) for p in picked]]


def by_torch(training: LocalTraining, x: Tensor, y: Tensor) -> Tensor:
    """u as a client computes it that knows torch and nothing of pplleak."""
    network = copy.deepcopy(client_of(training).network).requires_grad_()
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = TORCHS[training.optimizer.name](
        network.parameters(), lr=training.lr, **training.optimizer.settings
    )  # fmt: skip
    epochs = loaded(training, x, y)
    schedule, per = scheduler(training, optimizer, sum(map(len, epochs)), len(epochs))
    for batches in epochs:
        for a, b in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(a), b)
            away = sum((p - q).square().sum() for p, q in zip(network.parameters(), before, strict=True))
            (loss + training.prox / 2 * away).backward()
            if training.clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), training.clip)
            optimizer.step()
            if per == "step":
                schedule.step()
        if per == "epoch":
            schedule.step()
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(network.parameters(), before, strict=True)])
    return {"difference": moved, "negative": -moved, "rate": -moved / training.lr}[training.shares]


def drawn(seed: int) -> tuple[LocalTraining, int]:
    """Settings of every kind by chance, and how many examples the client has."""
    draw = random.Random(seed)
    size = draw.choice([None, 1, 2, 3])
    examples = draw.randint(size or 1, 5)
    counts: dict[str, Any] = {"steps": draw.randint(1, 6)}
    if draw.random() < 0.7:
        counts = {"epochs": draw.randint(1, 3), "drop_last": draw.random() < 0.4}
    decay = draw.choice([0.0, 1e-2, 0.1])
    name = draw.choice(list(TORCHS))
    how: dict[str, Any] = {
        "betas": (draw.choice([0.5, 0.9]), draw.choice([0.9, 0.999])),
        "eps": draw.choice([1e-8, 1e-3]),
    }
    if name == "sgd":
        momentum = draw.choice([0.0, 0.5, 0.9])
        nesterov = momentum > 0 and draw.random() < 0.5
        how = {"momentum": momentum, "nesterov": nesterov, "dampening": 0.0 if nesterov else draw.choice([0.0, 0.3])}
    per = draw.choice(["step", "epoch"]) if "epochs" in counts else "step"
    schedule = draw.choice([
        Named("constant"),
        Named("cosine", {"eta_min": draw.choice([0.0, 0.01]), "T_max": draw.choice([None, 7]), "per": per}),
        Named("step", {"step_size": draw.randint(1, 2), "gamma": 0.5, "per": per}),
        Named("exponential", {"gamma": 0.8, "per": per}),
    ])  # fmt: skip
    return LocalTraining(
        draw.choice([0.03, 0.3]), batch_size=size, optimizer=Named(name, {**how, "weight_decay": decay}),
        schedule=schedule, clip=draw.choice([None, 0.1, 100.0]), prox=draw.choice([0.0, 0.5]),
        shares=draw.choice(["difference", "negative", "rate"]), **counts,
    ), examples  # fmt: skip


def momentum_of(training: LocalTraining, examples: int) -> float:
    """That of an optimiser that has one, and takes the steps that show it."""
    steps = len(list(training.batches(examples)))
    return float(training.optimizer.settings.get("momentum", 0.0)) if steps > 1 else 0.0


def error(found: Tensor, right: Tensor) -> float:
    return float(((found - right).abs().max() / right.abs().max()).detach())


@pytest.mark.parametrize("seed", range(WALK))
def test_the_update_is_that_of_torchs_own_optimisers(seed: int) -> None:
    training, examples = drawn(seed)
    client = client_of(training)
    x, y = batch_of(client, (), examples)
    right = by_torch(training, x, y)
    assert float(right.norm()) > 1e-3
    assert error(client.update(x, y).materialise(), right) < 1e-9
    a = x.clone().requires_grad_()
    assert error(client.update(a, y).materialise(), right) < 1e-9  # the form that is differentiated
    if momentum := momentum_of(training, examples):
        twin = replace(training, optimizer=training.optimizer.with_(momentum=momentum - 0.1))
        assert error(client_of(twin).update(x, y).materialise(), right) > 1e-3


def test_the_walk_comes_past_every_setting() -> None:
    seen = [drawn(seed) for seed in range(WALK)]
    trainings = [t for t, _ in seen]
    assert {t.optimizer.name for t in trainings} == set(optimisers.names("optimizer")) == set(TORCHS)
    assert {t.schedule.name for t in trainings} == set(optimisers.names("schedule"))
    assert {t.schedule.settings.get("per") for t in trainings} == {None, "step", "epoch"}
    assert {(t.epochs is None, t.clip, t.prox > 0) for t in trainings} >= {(False, 0.1, True), (True, 0.1, False)}
    assert any(t.optimizer.settings.get("nesterov") for t in trainings)
    assert sum(momentum_of(t, n) > 0 for t, n in seen) >= 5  # each has its wrong twin
    assert any(t.optimizer.settings["weight_decay"] for t in trainings)
    short = [t.drop_last for t, n in seen if t.epochs and t.batch_size and n % t.batch_size]
    assert {True, False} == set(short)


def test_f12_a_short_last_batch() -> None:
    training = LocalTraining(0.1, batch_size=2, epochs=2)
    client = client_of(training)
    x, y = batch_of(client, (), 3)
    assert list(training.batches(3)) == [[0, 1], [2], [0, 1], [2]]
    assert list(replace(training, drop_last=True).batches(3)) == [[0, 1], [0, 1]]
    assert list(LocalTraining(0.1, 4, 2).batches(3)) == [[0, 1], [2, 0], [1, 2], [0, 1]]
    right = by_torch(training, x, y)
    assert error(client.update(x, y).materialise(), right) < 1e-9
    round_and_round = client_of(LocalTraining(0.1, 4, 2)).update(x, y).materialise()
    assert error(round_and_round, right) > 0.1


SMOOTH = {
    "momentum": LocalTraining(0.3, 3, optimizer=Named.parse("sgd:momentum=0.9,nesterov=True,weight_decay=0.01")),
    "adam": LocalTraining(0.1, 3, optimizer=Named.parse("adam:eps=1e-3")),
    "adamw, clipped, FedProx": LocalTraining(
        0.1, 3, 2, optimizer=Named.parse("adamw:eps=1e-3"), clip=0.1, prox=0.5, shares="rate"
    ),
}


@pytest.mark.parametrize("how", SMOOTH)
def test_its_first_two_derivatives_in_x_are_those_of_differences(how: str) -> None:
    client = client_of(SMOOTH[how])
    x, y = batch_of(client, (), 2)
    part = torch.linspace(-1, 1, client.update_size, dtype=x.dtype)

    def scalar(a: Tensor) -> Tensor:
        return (client.update(a, y).materialise() * part).sum()

    x.requires_grad_()
    assert torch.autograd.gradcheck(scalar, (x,))
    assert torch.autograd.gradgradcheck(scalar, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TORCHS)
def test_where_a_slope_is_0_the_derivatives_are_finite_and_not_all_0(name: str, dtype: torch.dtype) -> None:
    training = LocalTraining(0.1, 2, optimizer=Named(name), clip=0.1)
    client = replace(tiny("mlp", SHAPE, activation="tanh", dtype=str(dtype)[6:]), local=training, path="vmap")
    x = torch.zeros(1, *SHAPE, dtype=dtype, requires_grad=True)  # of dead pixels: ∇W of the first layer is 0
    u = client.update(x, torch.tensor([1])).materialise()
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.square().sum(), x)
    assert slope.isfinite().all() and bend.isfinite().all() and slope.abs().max() > 0


def test_a_gradient_of_length_0_is_clipped_to_itself_with_derivatives() -> None:
    slope = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    out = optimisers.clipped({"w": slope}, 0.5)["w"]
    (back,) = torch.autograd.grad(out.sum(), slope)
    torch.testing.assert_close(back, torch.ones_like(back))


def test_each_row_is_clipped_by_its_own_length() -> None:
    slopes = {"a": torch.tensor([[3.0], [0.3]]), "b": torch.tensor([[[4.0]], [[0.4]]])}
    found = optimisers.clipped(slopes, 1.0)
    torch.testing.assert_close(found["a"].flatten(), torch.tensor([0.6, 0.3]))
    torch.testing.assert_close(found["b"].flatten(), torch.tensor([0.8, 0.4]))


@pytest.mark.parametrize(
    ("how", "keeps"),
    [
        ("sgd:momentum=0.9,nesterov=True", True), ("sgd:weight_decay=0.01", False), ("adam", False),
        ("adamw:weight_decay=0", False),
    ],
)  # fmt: skip
def test_whether_the_last_bias_moves_by_nothing_in_all(how: str, keeps: bool) -> None:
    training = LocalTraining(0.1, 3, 2, optimizer=Named.parse(how), clip=1.0, prox=0.1)
    client = client_of(training)
    name = list(client.layers)[-1]
    moved = client.update(*batch_of(client, (), 2)).materialise()[client.slices[name]]
    assert len(moved) == 3
    assert (abs(float(moved.sum())) < 1e-12) == keeps == optimisers.keeps_sums(training.optimizer)


# -- what is refused, kept and said -----------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "an optimiser that is not there": ({"optimizer": "adamm"}, "did you mean adam"),
    "a setting that it has not": ({"optimizer": "sgd:betas=(0.9,0.99)"}, "local optimizer sgd has no setting 'betas'"),
    "a setting of another kind": ({"optimizer": "sgd:momentum=much"}, "momentum of the local optimizer sgd is 'much'"),
    "a pair that is none": ({"optimizer": "adam:betas=0.9"}, "Expected `array`, got `float`"),
    "a setting that torch refuses": ({"optimizer": "sgd:nesterov=True"}, "Nesterov momentum requires a momentum"),
    "betas that torch refuses": ({"optimizer": "adam:betas=(1.0,0.9)"}, "Invalid beta parameter"),
    "a setting without end": ({"optimizer": "sgd:weight_decay=1e999"}, "must be finite"),
    "a schedule that is not there": ({"schedule": "cosin"}, "did you mean cosine"),
    "a schedule without length": ({"schedule": "cosine:T_max=0"}, "T_max must be a positive number"),
    "a schedule of epochs for steps": ({"schedule": "step:per=epoch"}, "say its epochs"),
    "steps and epochs": ({"steps": 3, "epochs": 2}, "leave one of them out"),
    "no epochs": ({"epochs": 0}, "number of local epochs must be a whole number"),
    "half a step": ({"steps": 1.5}, "number of local steps must be a whole number"),
    "more steps than any": ({"steps": 10**9}, "below 10,000"),
    "nothing to drop": ({"drop_last": True}, "none to drop"),
    "clipping at nothing": ({"clip": 0.0}, "must be a positive number"),
    "FedProx turned round": ({"prox": -1.0}, "0 or more"),
    "an update of another kind": ({"shares": "weights"}, "difference, negative, rate"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_impossible_training_is_refused(mistake: str) -> None:
    settings, said = MISTAKES[mistake]
    with pytest.raises(BadInput) as raised:
        LocalTraining(0.1, **settings)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_schedule_that_overflows_and_a_training_on_nothing_are_refused() -> None:
    rising = LocalTraining(0.1, 3, schedule=Named.parse("exponential:gamma=1e12"))
    assert list(rising.rates(1)) == [0.1, 0.1 * 1e12, 0.1 * 1e24]
    with pytest.raises(BadInput, match="to infinity"):
        list(replace(rising, steps=100).rates(1))
    with pytest.raises(BadInput, match="nothing is left"):
        LocalTraining(0.1, batch_size=4, epochs=1, drop_last=True).batches(3)
    assert list(LocalTraining(0.1, batch_size=4, epochs=1).batches(3)) == [[0, 1, 2]]  # as a DataLoader does


@pytest.mark.parametrize("seed", range(5))
def test_it_is_kept_as_json_and_read_again(seed: int) -> None:
    training, _ = drawn(seed)
    kept = training.to_json()
    assert LocalTraining.from_json(kept) == training
    assert LocalTraining(0.1, 4, 2).to_json() == {"lr": 0.1, "steps": 4, "batch_size": 2}  # as older files have it


def test_the_command_line_lists_what_there_is_without_running_it() -> None:
    for kind in ("optimizer", "schedule"):
        known = named.algorithms(kind)
        assert list(known) == list(optimisers.names(kind))
        for name, found in known.items():
            assert {s.name: s.default for s in found} == optimisers.check(kind, name).settings
            assert all(s.help for s in found)


ADAM = ["--local-lr", "0.01", "--local-epochs", "2", "--local-batch-size", "2", "--local-drop-last",
        "--local-optimizer", "adam:betas=(0.8,0.99)", "--local-schedule", "cosine:per=epoch", "--local-clip", "1",
        "--local-prox", "0.1", "--local-shares", "negative"]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("local") / "o.safetensors"
    assert run(["observe", "--network.widths", "4", "--batch-size", "3", *ADAM, "--out", str(path)]) == 0
    return path


def test_an_observation_file_carries_it_all(written: Path) -> None:
    assert load(written).client.local == LocalTraining(
        0.01, batch_size=2, optimizer=Named("adam", {"betas": (0.8, 0.99)}), epochs=2, drop_last=True,
        schedule=Named("cosine", {"per": "epoch"}), clip=1.0, prox=0.1, shares="negative",
    )  # fmt: skip


HOSTILE: list[Any] = [
    {"lr": 0.1, "optimizer": "adam"},
    {"lr": 0.1, "optimizer": {"name": ["adam"], "settings": {}}},
    {"lr": 0.1, "optimizer": {"name": "adam", "settings": {"eps": 10**400}}},
    {"lr": 0.1, "optimizer": {"name": "os", "settings": {}}},
    {"lr": 0.1, "optimizer": {"name": "_root", "settings": {}}},
    {"lr": 10**400},
    {"lr": 0.1, "epochs": 10**9},
    {"lr": 0.1, "clip": "1"},
    {"lr": 0.1, "drop_last": "no", "epochs": 1},
    {"lr": 0.1, "surprise": 1},
    [1],
]  # fmt: skip


@pytest.mark.parametrize("local", HOSTILE, ids=lambda v: str(v)[:60])
def test_a_file_with_another_training_is_refused_in_one_line(
    local: Any, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(tmp_path / "o.safetensors", written, {"local": local})
    one_line(["attack", "--observed", str(path)], capsys, "its metadata")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--local-optimizer", "adam"], "add --local-lr"),
        (["--local-lr", "0.1", "--local-optimizer", "sgd:momentum=-1"], "Invalid momentum value"),
        (["--local-lr", "0.1", "--local-epochs", "2", "--local-steps", "2"], "leave one of them out"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one_line(["observe", *words], capsys, said)
