"""Capture: what was recorded of a real training step is what that step did, and what cannot be said is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_pre_hooks
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.data import DataLoader, TensorDataset

import pplleak as pl
from pplleak import channels
from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput
from pplleak.federation import capture
from pplleak.federation.capture import flower, training
from pplleak.federation.capture.watch import watched

SHAPE, N, BATCH = (1, 6, 6), 10, 4


class Net(nn.Module):
    """Convolution, ReLU and max-pooling, as in a quickstart; with batch normalisation if asked."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity()
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1))


class Normed(Net):
    def __init__(self) -> None:
        super().__init__(norm=True)


def batch(size: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, *SHAPE, generator=generator), torch.randint(3, (size,), generator=generator)


def train(
    network: nn.Module, make: Callable[[Any], torch.optim.Optimizer], *, epochs: int = 2, shuffle: bool = False,
    size: int = N, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> None:  # fmt: skip
    optimizer = make(network.parameters())
    for _ in range(epochs):
        for x, y in DataLoader(TensorDataset(*batch(size)), batch_size=BATCH, shuffle=shuffle):
            optimizer.zero_grad()
            loss(network(x), y).backward()
            optimizer.step()


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def replayed(observed: pl.Observation, path: Path, client: pl.Client | None = None) -> float:
    """‖u(truth) − g‖ / ‖g‖ of the recorded files."""
    kept = capture.read(path.parent / "private" / path.name)
    u = (client or observed.client).update(kept.x, kept.y).materialise()
    return float((u - observed.g).norm() / observed.g.norm())


def loaded(path: Path, kind: str = "Net") -> pl.Observation:
    return pl.load(path, network=f"{__file__}:{kind}")


@pytest.mark.parametrize(
    "make",
    [
        momentum,
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.99)),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.3, decoupled_weight_decay=True),  # AdamW by another name
    ],
)
def test_a_recorded_training_is_what_its_observation_says(make: Any, tmp_path: Path) -> None:
    path, network = tmp_path / "o.safetensors", Net()
    with pl.record(network, path):
        train(network, make)
    observed = loaded(path)
    assert observed.client.local is not None and observed.client.local.epochs == 2
    assert (observed.batch_size, observed.labels) == (N, None)
    assert replayed(observed, path) < 1e-4  # float32, six steps
    plain = replace(observed.client, local=LocalTraining(observed.client.local.lr, epochs=2, batch_size=BATCH))
    assert replayed(observed, path, plain) > 0.1  # the wrong twin: another optimiser
    kept = capture.read(tmp_path / "private" / "o.safetensors")
    assert kept.in_order and torch.equal(kept.x, batch()[0]) and torch.equal(kept.y, batch()[1])


def test_recording_changes_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    networks = []
    for recorded in (False, True):
        torch.manual_seed(0)
        network = Net()
        if recorded:
            with pl.record(network, tmp_path / "o.safetensors"):
                train(network, momentum)
        else:
            train(network, momentum)
        networks.append(network)
    for p, q in zip(*(n.parameters() for n in networks), strict=True):
        assert torch.equal(p, q)
    assert not network._forward_pre_hooks and not _global_forward_pre_hooks
    assert not _global_optimizer_pre_hooks and not _global_optimizer_post_hooks


def test_the_network_is_found_where_none_is_named(tmp_path: Path) -> None:
    path, network = tmp_path / "o.safetensors", Net()
    with pl.record(None, path):
        with torch.no_grad():
            nn.Linear(2, 2)(torch.rand(1, 2))  # no training
        train(network, momentum)
    assert replayed(loaded(path), path) < 1e-4


def test_one_plain_step_and_no_step_give_the_gradient(tmp_path: Path) -> None:
    x, y = batch(3)
    for name, steps in (("step", True), ("none", False)):
        path, network = tmp_path / f"{name}.safetensors", Net()
        optimizer = momentum(network.parameters())
        with pl.record(network, path):
            nn.CrossEntropyLoss(label_smoothing=0.1)(network(x), y).backward()
            if steps:
                optimizer.step()
        observed = loaded(path)
        assert observed.client.local is None and observed.client.loss == "cross_entropy:label_smoothing=0.1"
        assert replayed(observed, path) < 1e-5


def test_an_order_that_is_shuffled_is_kept_by_the_auditor_and_costs_the_model(tmp_path: Path) -> None:
    path, network = tmp_path / "o.safetensors", Net()
    torch.manual_seed(0)
    with pl.record(network, path):
        train(network, momentum, shuffle=True)
    kept = capture.read(tmp_path / "private" / "o.safetensors")
    assert not kept.in_order and sorted(k for step in kept.steps[:3] for k in step) == list(range(N))
    assert 1e-3 < replayed(loaded(path), path) < 0.5


def test_mode_and_buffers_of_before_are_recorded(tmp_path: Path) -> None:
    path, network = tmp_path / "o.safetensors", Normed().train()
    with pl.record(network, path):
        train(network, momentum, size=BATCH)
    observed = loaded(path, "Normed")
    assert observed.client.mixes_batch  # train mode: the batch's own statistics
    assert replayed(observed, path) < 1e-3
    assert float(network.norm.running_mean.abs().sum()) > 0
    network.eval()
    before = network.norm.running_mean.clone()
    with pl.record(network, path):
        train(network, momentum, size=BATCH)
    observed = loaded(path, "Normed")
    assert not observed.client.mixes_batch
    assert torch.equal(observed.client.network.norm.running_mean, before)
    assert replayed(observed, path) < 1e-3


def test_a_loss_of_ones_own_is_said(tmp_path: Path) -> None:
    path, network = tmp_path / "o.safetensors", Net()

    def own(logits: Tensor, y: Tensor) -> Tensor:
        return -logits.log_softmax(1)[torch.arange(len(y)), y].mean()

    with pytest.raises(BadInput, match="say loss="), pl.record(network, path):
        train(network, momentum, loss=own, epochs=1)
    assert not path.exists()
    network = Net()
    with pl.record(network, path, loss="cross_entropy", labels=batch()[1]):
        train(network, momentum, loss=own, epochs=1)
    assert replayed(loaded(path), path) < 1e-4


def test_normalised_inputs_are_recorded_as_images(tmp_path: Path) -> None:
    path, network, (x, y) = tmp_path / "o.safetensors", Net(), batch(2)
    with pytest.raises(BadInput, match="normalise="), pl.record(network, path):
        F.cross_entropy(network((x - 0.5) / 0.25), y).backward()
    network.zero_grad()
    with pl.record(network, path, normalise=(0.5, 0.25)):
        F.cross_entropy(network((x - 0.5) / 0.25), y).backward()
    assert torch.allclose(capture.read(tmp_path / "private" / "o.safetensors").x, x, atol=1e-6)
    assert replayed(loaded(path), path) < 1e-5


def _twice(network: nn.Module, optimizer: Any) -> None:
    for _ in range(2):
        F.cross_entropy(network(batch(2)[0]), batch(2)[1]).backward()
    optimizer.step()


def _rates(network: nn.Module, optimizer: Any) -> None:
    for lr in (0.1, 0.05):
        optimizer.param_groups[0]["lr"] = lr
        F.cross_entropy(network(batch(2)[0]), batch(2)[1]).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("work", "make", "said"),
    [
        (lambda n, o: None, momentum, "nothing was recorded"),
        (_twice, momentum, "2 forward passes"),
        (_rates, momentum, "learning rates"),
        (lambda n, o: train(n, torch.optim.Adagrad), momentum, "Adagrad is none"),
        (lambda n, o: train(n, lambda p: torch.optim.SGD(p, lr=0.1, maximize=True)), momentum, "maximize"),
        (lambda n, o: train(n, lambda p: torch.optim.SGD(n.last.parameters(), lr=0.1)), momentum, "freeze"),
    ],
)
def test_what_no_observation_can_say_is_refused_when_the_training_is_done(
    work: Any, make: Any, said: str, tmp_path: Path
) -> None:
    network = Net()
    optimizer = make(network.parameters())
    with pytest.raises(BadInput, match=said), pl.record(network, tmp_path / "o.safetensors"):
        work(network, optimizer)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_optimiser_that_remembers_earlier_rounds_is_refused(tmp_path: Path) -> None:
    network, optimizers = Net(), []
    train(network, lambda p: optimizers.append(momentum(p)) or optimizers[0], epochs=1)
    with pytest.raises(BadInput, match="remembers"), pl.record(network, tmp_path / "o.safetensors"):
        train(network, lambda p: optimizers[0], epochs=1)


def test_random_transforms_make_every_input_an_example() -> None:
    from pplleak.federation.capture.watch import Step

    x, y = batch(8)
    steps = [Step(inputs=[part]) for part in (x[:4], x[4:])]
    _, labels, order = training.examples(steps, [y[:4], y[4:]])
    assert order == [[0, 1, 2, 3], [4, 5, 6, 7]] and len(labels) == 8
    again = [Step(inputs=[part]) for part in (x[:4], x[[2, 0, 3, 1]])]
    _, labels, order = training.examples(again, [y[:4], y[[2, 0, 3, 1]]])
    assert order == [[0, 1, 2, 3], [2, 0, 3, 1]] and len(labels) == 4


def test_the_private_file_is_no_observation_and_no_other_file_is_one(tmp_path: Path) -> None:
    path, network = tmp_path / "o.safetensors", Net()
    with pl.record(network, path):
        train(network, momentum)
    with pytest.raises(BadInput, match="no private batch"):
        capture.read(path)
    with pytest.raises(BadInput):
        loaded(tmp_path / "private" / "o.safetensors")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_step_of_opacus_is_recorded_with_its_noise_its_lot_and_its_epsilon(tmp_path: Path) -> None:
    opacus = pytest.importorskip("opacus")
    torch.manual_seed(1)
    engine, network = opacus.PrivacyEngine(accountant="rdp"), Net()
    wrapped, optimizer, loader = engine.make_private(
        module=network, optimizer=momentum(network.parameters()), noise_multiplier=0.5, max_grad_norm=0.1,
        data_loader=DataLoader(TensorDataset(*batch(40)), batch_size=BATCH),
    )  # fmt: skip
    squares, lots = [], set()
    for k, (x, y) in enumerate(loader):
        path = tmp_path / f"{k}.safetensors"
        if k == 0:
            with pytest.raises(BadInput, match="in the step of its own optimiser"), pl.record(wrapped, path):
                F.cross_entropy(wrapped(x), y).backward()
            optimizer.zero_grad()
        with pl.record(wrapped, path):
            F.cross_entropy(wrapped(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()
        observed, kept = loaded(path), capture.read(tmp_path / "private" / path.name)
        channel = observed.protection.channel
        assert channel is not None and channel.name == "dpsgd" and len(kept.y) == len(y)
        lots.add(channel.settings["lot"])
        law = channels.make(channel, observed.client.update(kept.x, kept.y), observed.client, len(y), None)
        assert law.sigma == pytest.approx(0.5 * 0.1 / BATCH)
        squares.append(((observed.g - law.clipped.update.materialise()) / law.sigma).square().double())
        spent = observed.provenance["privacy"]
        assert spent["sample_rate"] == pytest.approx(BATCH / 40)
        assert spent["epsilon"] == pytest.approx(engine.get_epsilon(1e-5))
    found = torch.cat(squares)
    assert BATCH in lots  # Poisson: some batches have another size than is expected
    spread = (2 / len(found)) ** 0.5
    assert abs(float(found.mean()) - 1) < 4 * spread
    assert abs(float(found.mean()) * 0.8**2 - 1) > 4 * spread  # a wrong twin: noise of 1.25 σ


@pytest.mark.filterwarnings("ignore")
def test_a_training_by_opacus_is_recorded_step_by_step(tmp_path: Path) -> None:
    opacus = pytest.importorskip("opacus")
    torch.manual_seed(0)
    engine, network = opacus.PrivacyEngine(accountant="rdp"), Net()
    sizes: list[int] = []
    sent: list[Tensor] = []
    wrapped, optimizer, loader = engine.make_private(
        module=network, optimizer=momentum(network.parameters()), noise_multiplier=1e-4, max_grad_norm=0.3,
        data_loader=DataLoader(TensorDataset(*batch(8)), batch_size=2),
    )  # fmt: skip
    with pl.record(None, tmp_path / "o.safetensors"):
        for x, y in [*loader, (batch(0)), *loader]:  # Poisson sampling draws an empty batch at times
            optimizer.zero_grad()
            F.cross_entropy(wrapped(x), y).backward()
            optimizer.step()
            sizes.append(len(y))
            sent.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    steps = [k for k, size in enumerate(sizes, 1) if size]
    assert {p.stem for p in tmp_path.glob("*.safetensors")} == {f"o-step-{k}" for k in steps} and len(steps) > 4
    spent = []
    for k in steps:
        path = tmp_path / f"o-step-{k}.safetensors"
        observed = loaded(path)
        torch.testing.assert_close(observed.g, sent[k - 1])
        kept = capture.read(tmp_path / "private" / path.name)
        assert observed.protection.channel is not None and len(kept.y) == sizes[k - 1]
        update = observed.client.update(kept.x, kept.y)  # at the weights that this step began with
        law = channels.make(observed.protection.channel, update, observed.client, len(kept.y), None)
        assert isinstance(law, channels.DPSGD)
        torch.testing.assert_close(law.clipped.update.materialise(), observed.g, rtol=1e-3, atol=1e-3)
        spent.append(observed.provenance["privacy"])
    assert [s["step"] for s in spent] == steps and {s["steps"] for s in spent} == {len(sizes)}
    assert [s["epsilon"] for s in spent] == sorted(s["epsilon"] for s in spent)
    assert spent[-1]["epsilon"] == pytest.approx(engine.get_epsilon(1e-5))


def test_a_round_is_counted_from_what_was_recorded_where_no_server_says_it(tmp_path: Path) -> None:
    silent = SimpleNamespace(content=SimpleNamespace(config_records={"fit": {}}))
    for name in ("round-1-client-0", "round-2-client-0-step-1", "round-2-client-0-step-3", "round-7-client-1"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    assert [flower._round(silent, tmp_path, client) for client in ("0", "1", "2")] == [3, 8, 1]


@pytest.mark.filterwarnings("ignore")
def test_a_clip_of_opacus_that_no_channel_has_is_refused(tmp_path: Path) -> None:
    opacus = pytest.importorskip("opacus")
    network = Net()
    wrapped, optimizer, _ = opacus.PrivacyEngine().make_private(
        module=network, optimizer=momentum(network.parameters()), noise_multiplier=1.0, clipping="per_layer",
        max_grad_norm=[1.0] * len(list(network.parameters())), data_loader=DataLoader(TensorDataset(*batch(8))),
    )  # fmt: skip
    with pytest.raises(BadInput, match="DPPerLayerOptimizer clips otherwise"), pl.record(wrapped, tmp_path / "o"):
        F.cross_entropy(wrapped(batch(2)[0]), batch(2)[1]).backward()
        optimizer.step()
    assert not list(tmp_path.iterdir())


def test_a_network_with_a_part_that_is_called_module_is_recorded_whole(tmp_path: Path) -> None:
    """A wrapper is known by what it is, not by the name of what it holds."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.module(x.flatten(1)).tanh())
            return out

    network = Holder()
    for wrapped in (network, nn.DataParallel(network)):
        with watched(wrapped) as seen:
            wrapped(torch.rand(2, 4))
        assert seen.network is network and len(seen.before) == 4
