"""Federated training: against loops written by hand, against Opacus, and against its own interruption."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import Killed
from command_line import command as run
from conftest import tiny
from scenes import build_client
from torch import Tensor, nn

from pplleak import channels
from pplleak.client import Client, weights
from pplleak.client.training import LocalTraining
from pplleak.data import Images
from pplleak.errors import BadInput
from pplleak.federation import privacy, rounds
from pplleak.federation.protection import Protection
from pplleak.federation.rounds import Federation

ALONE = Federation(clients=1, batch_size=12, lr=0.5)
FEW = Federation(clients=2, batch_size=3, lr=0.5)


def images(count: int = 12) -> Images:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 2, 2, dtype=torch.float64, generator=generator)
    return Images(x, (x.sum((1, 2, 3)) * 1.5).long().clamp(0, 2), ("a", "b", "c"))


def flat(client: Client) -> Tensor:
    return torch.cat([p.flatten() for p in client.parameters.values()])


def by_sgd(client: Client, x: Tensor, y: Tensor, lr: float, batches: list[list[int]]) -> Tensor:
    """θ_after − θ_before of torch's own SGD on a deep copy, one step for each batch."""
    network = copy.deepcopy(client.network).requires_grad_(True)
    before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()]) - before


def test_a_step_of_one_client_is_a_step_of_sgd() -> None:
    client, data = tiny(), images()
    moved = by_sgd(client, data.x, data.y, 0.5, [list(range(12))])
    before = flat(client)
    rounds.step(client, data, ALONE, Protection(), 1, seed=0)
    torch.testing.assert_close(flat(client) - before, moved)


@pytest.mark.parametrize(("examples", "size", "epochs"), [(2, 1, 1), (4, 2, 3), (8, 4, 2)])
def test_the_attacked_fedavg_update_is_what_the_client_really_does(examples: int, size: int, epochs: int) -> None:
    data, steps = images(examples), epochs * examples // size
    client = build_client("mlp", {"widths": (4,)}, (1, 2, 2), 3, dtype="float64", local=LocalTraining(0.3, steps, size))
    order = [list(range(k, k + size)) for k in range(0, examples, size)] * epochs
    found = client.update(data.x, data.y).materialise()
    torch.testing.assert_close(found, by_sgd(client, data.x, data.y, 0.3, order))
    twin = by_sgd(client, data.x, data.y, 0.3, order[:-1])
    assert float((found - twin).norm()) > 1e-3 * float(found.norm())


def test_a_round_of_fedavg_moves_by_the_mean_of_what_its_clients_moved() -> None:
    client, data = tiny(), images(4)
    client = replace(client, local=LocalTraining(0.3, 4, 1), path="vmap")
    federation = Federation(clients=2, participants=2, batch_size=2)
    before, moves = flat(client), []
    for k in range(2):
        mine = federation.shard(4, k, seed=3)
        torch.manual_seed(rounds.seed_of(3, 1 + k))
        picked = mine[torch.randperm(2)]
        moves.append(by_sgd(client, data.x[picked], data.y[picked], 0.3, [[0], [1], [0], [1]]))
    rounds.step(client, data, federation, Protection(), 1, seed=3)
    torch.testing.assert_close(flat(client) - before, (moves[0] + moves[1]) / 2)


@pytest.mark.parametrize("shares", ["negative", "rate"])
def test_a_round_moves_the_same_way_whatever_its_clients_share_of_their_movement(
    shares: Literal["negative", "rate"],
) -> None:
    ends = []
    for local in (LocalTraining(0.3, 2), LocalTraining(0.3, 2, shares=shares)):
        client = replace(tiny(), local=local, path="vmap")
        rounds.step(client, images(), ALONE, Protection(), 1, seed=0)
        ends.append(flat(client))
    torch.testing.assert_close(ends[1], ends[0])


def test_clients_hold_all_images_once_and_take_turns() -> None:
    federation = Federation(clients=3, participants=2)
    held = torch.cat([federation.shard(10, k, seed=0) for k in range(3)])
    assert sorted(held.tolist()) == list(range(10))
    turns = [federation.asked(t) for t in range(1, 8)]
    counts = np.bincount(np.concatenate(turns), minlength=3)
    assert turns[:3] == [[0, 1], [2, 0], [1, 2]]
    assert federation.turns(7) == counts.max()


# -- checkpoints -----------------------------------------------------------------------------------------------------


def stopping(after: int) -> object:
    """A progress function whose user presses Ctrl-C after so many steps."""

    def progress(label: str, total: int) -> Iterator[int]:
        for k in range(total):
            if k == after:
                raise KeyboardInterrupt
            yield k

    return progress


def trained(out: Path, defence: str, steps: tuple[int, ...], **settings: object) -> Tensor:
    client, data = tiny(), images()
    rows, _ = rounds.train(
        client, data, data, FEW, Protection.parse(defence), out,
        checkpoints=steps, settings={"defence": defence}, seed=5, **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    assert [r["step"] for r in rows] == sorted(rounds._steps(out))
    tensors = weights.read(rounds.path(out, rows[-1]["step"]))[0]
    return torch.cat([tensors[n].flatten() for n in client.layers])


@pytest.mark.slow
@pytest.mark.parametrize("defence", ["none", "gaussian:sigma=0.1", "dpsgd:noise_multiplier=1"])
def test_an_interrupted_training_goes_on_bit_for_bit(defence: str, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", defence, (0, 2, 9))
    part = trained(tmp_path / "part", defence, (0, 2, 9), progress=stopping(5))
    assert rounds.path(tmp_path / "part", 5).exists() and not torch.equal(part, whole)
    assert torch.equal(trained(tmp_path / "part", defence, (0, 2, 9)), whole)
    assert sorted(rounds._steps(tmp_path / "part")) == [0, 2, 9]  # and step 5 is gone
    trained(tmp_path / "later", defence, (0, 2))
    assert torch.equal(trained(tmp_path / "later", defence, (0, 2, 9)), whole)


def test_the_usual_checkpoints() -> None:
    assert rounds.milestones(1000) == (0, 10, 20, 50, 100, 200, 500, 1000)
    assert rounds.milestones(30) == (0, 10, 20, 30)


def test_a_training_that_diverges_says_so_and_keeps_what_was_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pplleak.errors.MOST", 1e301)  # of a learning rate
    wild = replace(FEW, lr=1e300)
    with pytest.raises(BadInput, match="diverged before step 4"):
        rounds.train(tiny(), images(), images(), wild, Protection(), tmp_path,
                        checkpoints=(0, 4), settings={})  # fmt: skip
    assert rounds._steps(tmp_path) == [0]


# -- DP-SGD, against Opacus -------------------------------------------------------------------------------------------


def opacus_run(noise: float, clip: float, steps: int) -> tuple[Client, nn.Module, list[Tensor], object]:
    """Our client, and Opacus's steps on a copy of its network: the gradients and the engine."""
    opacus = pytest.importorskip("opacus")
    client, data = tiny(), images()
    network = copy.deepcopy(client.network).requires_grad_(True).train()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data.x, data.y), batch_size=3)
    engine = opacus.PrivacyEngine(accountant="rdp")
    module, optimizer, loader = engine.make_private(
        module=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.0), data_loader=loader,
        noise_multiplier=noise, max_grad_norm=clip, poisson_sampling=False,
    )  # fmt: skip
    found = []
    for _, (x, y) in zip(range(steps), [b for _ in range(steps) for b in loader], strict=False):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    return client, module, found, engine


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip", [0.05, 0.3, 100.0])
def test_the_clipped_sum_is_opacus_s(clip: float) -> None:
    client, _, found, _ = opacus_run(0.0, clip, 4)
    data = images()
    for k, theirs in enumerate(found):
        x, y = data.x[3 * k : 3 * k + 3], data.y[3 * k : 3 * k + 3]
        ours = channels.DPSGD(client.update(x, y), clip=clip).clipped.update.materialise()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-9)  # Opacus adds 1e-6 to every norm
        if clip < 100:
            assert float((client.update(x, y).materialise() - theirs).norm()) > 0.05 * float(theirs.norm())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_epsilon_is_that_of_opacus_s_accountant_for_the_same_run() -> None:
    *_, engine = opacus_run(1.1, 1.0, 9)
    alone = Federation(clients=1, batch_size=3)
    dpsgd = Protection.parse("dpsgd:noise_multiplier=1.1")
    found = rounds.epsilon(alone, dpsgd, 12, 9)
    assert found == pytest.approx(engine.get_epsilon(1e-5), rel=1e-9)  # type: ignore[attr-defined]
    assert found != pytest.approx(rounds.epsilon(alone, dpsgd, 12, 10), rel=1e-6)
    assert rounds.epsilon(alone, dpsgd, 12, 0) == 0
    assert rounds.epsilon(alone, Protection.parse("gaussian"), 12, 9) is None


def test_an_example_s_epsilon_counts_the_steps_in_which_its_client_was_asked() -> None:
    dpsgd = Protection.parse("dpsgd:noise_multiplier=1.1")
    apart = rounds.epsilon(Federation(clients=4, batch_size=3), dpsgd, 48, 36)
    assert apart == rounds.epsilon(Federation(clients=1, batch_size=3), dpsgd, 12, 9)


def test_dpsgd_takes_examples_one_by_one_and_divides_by_the_batch_that_was_meant() -> None:
    client, data, clip = tiny(), images(), 0.1
    quiet = Protection.parse(f"dpsgd:noise_multiplier=1e-9,clip={clip}")
    each = channels.DPSGD(client.update(data.x[:, None], data.y[:, None]), clip=clip).clipped.update.materialise()
    torch.manual_seed(0)
    came = torch.rand(12) < 3 / 12
    torch.manual_seed(0)
    found = rounds._sent(client, data, torch.arange(12), replace(ALONE, batch_size=3), quiet)
    torch.testing.assert_close(found, each[came].sum(0) / 3, rtol=1e-5, atol=1e-8)
    assert came.sum() not in (0, 3)
    loud = Protection.parse(f"dpsgd:noise_multiplier=2.0,clip={clip}")
    nobody = torch.stack([rounds._sent(client, data, torch.arange(12), replace(ALONE, batch_size=1e-9), loud) * 1e-9
                          for _ in range(200)])  # fmt: skip
    assert float(nobody.std()) == pytest.approx(2.0 * clip, rel=5 / np.sqrt(2 * nobody.numel()))


# -- the command -----------------------------------------------------------------------------------------------------

QUICK = ["--network.widths", "8", "--steps", "30", "--clients", "3", "--lr", "0.5"]


@pytest.fixture()
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_train_learns_and_an_attack_reads_its_checkpoint(workshop: Path) -> None:
    assert run("train", *QUICK, "--out", "t") == 0
    rows = rounds.log(Path("t"))
    assert [r["step"] for r in rows] == [0, 10, 20, 30]
    assert rows[-1]["accuracy"] > rows[0]["accuracy"] + 0.2 and rows[-1]["loss"] < rows[0]["loss"]
    attack = ["attack", "--network.widths", "8", "--checkpoint", "t/step-30.safetensors", "--inference", "map"]
    assert run(*attack, "--inference.steps", "3", "--inference.starts", "1") == 0
    assert run(*attack, "--network.widths", "9") == 2


@pytest.mark.slow
@pytest.mark.parametrize("before", ["step-20.safetensors", "log.csv"])
def test_a_training_that_is_killed_before_its_weights_or_their_row_loses_neither(
    before: str, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("train", *QUICK, "--out", "whole") == 0
    real = os.replace

    def killed(part: Path, target: Path) -> None:
        if target.name == before and (before != "log.csv" or rounds.path(Path("t"), 20).exists()):
            raise Killed
        real(part, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            run("train", *QUICK, "--out", "t")
    assert [r["step"] for r in rounds.log(Path("t"))] == [0, 10]  # no row tells of weights that are not there
    assert run("train", *QUICK, "--out", "t") == 0
    timeless = [[{**r, "cpu_seconds": 0} for r in rounds.log(Path(out))] for out in ("t", "whole")]
    assert timeless[0] == timeless[1] and [r["step"] for r in timeless[0]] == [0, 10, 20, 30]
    for number in (20, 30):
        one, other = (weights.read(rounds.path(Path(out), number))[0] for out in ("t", "whole"))
        assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_train_says_what_dpsgd_spends(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("opacus")
    assert run("train", *QUICK, "--channel", "dpsgd", "--channel.noise-multiplier", "2") == 0
    assert "ε" in capsys.readouterr().out
    spent = [r["epsilon"] for r in rounds.log(Path("train"))]
    assert spent[0] == 0 and spent == sorted(spent)
    assert spent[-1] == pytest.approx(privacy.epsilon(2.0, 32 / 500, 10))


@pytest.mark.slow
@pytest.mark.parametrize("local", [["--batch-size", "2"], ["--batch-size", "4", "--local-batch-size", "2"],
                                   ["--batch-size", "8", "--local-batch-size", "4"]])  # fmt: skip
def test_fedavg_clients_and_batches_are_attacked_from_the_command_line(workshop: Path, local: list[str]) -> None:
    argv = ["attack", "--network.widths", "8", "--local-lr", "0.1", "--local-steps", "4", "--sigma", "0.01", *local]
    assert run(*argv, "--inference", "map", "--inference.steps", "3", "--inference.starts", "2") == 0


MISTAKES = {
    "unknown channel": (["--channel", "dpsdg"], "did you mean dpsgd or dpfedavg?"),
    "unknown defence": (["--defence", "soterai"], "unknown defence 'soterai'"),
    "steps out of order": (["--checkpoints", "0", "20", "10"], "steps must ascend"),
    "a checkpoint after the end": (["--checkpoints", "0", "40"], "after the last of --steps 30"),
    "no steps": (["--steps", "0"], "--steps must be at least 1"),
    "too many clients": (["--clients", "900"], "fewer than a batch of 32"),
    "too many participants": (["--participants", "4"], "only 3 clients"),
    "DP-SGD of local training": (["--channel", "dpsgd", "--local-lr", "0.1"], "let clients share gradients"),
    "the folder of another defence": (["--channel", "gaussian", "--out", "none"], "with defence = none"),
    "the folder of another network": (["--network.widths", "9", "--out", "none"], "network_settings"),
    "a checkpoint of another network": (["--checkpoint", "none/step-0.safetensors", "--network", "linear"], "network"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    mistake: str, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = MISTAKES[mistake]
    if "none" in " ".join(words):
        assert run("train", *QUICK, "--steps", "1", "--out", "none") == 0
    arguments = [w for w in QUICK if w not in ("--network.widths", "8")] if "linear" in words else QUICK
    assert run("train", *arguments, *words) == 2
    shown = capsys.readouterr().err
    assert expected in shown and shown.startswith("pplleak: ") and shown.count("\n") == 1


def test_without_opacus_it_says_how_to_install_it(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    assert run("train", *QUICK, "--channel", "dpsgd") == 2
    assert "pip install pplleak[opacus]" in capsys.readouterr().err
