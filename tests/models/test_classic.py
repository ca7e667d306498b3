"""The classic attacks: each model's density is its published loss, its MAP the published optimiser, and a file's `MAP`
is what `--inference map` falls to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest
import torch
from conftest import batch_of, own, tiny
from scenes import from_data, known
from torch import Tensor, nn

from pplleak import density, programs
from pplleak.client import Client
from pplleak.density import label_rules, search
from pplleak.density.box import boxed
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.studies.attack import attack

SIGMA, KAPPA = 0.3, 50.0
Loss = Callable[[Client, Tensor, Tensor, Tensor], Tensor]  # client, x (batch, …), u and g (D,) -> the published loss


def l2(client: Client, x: Tensor, u: Tensor, g: Tensor) -> Tensor:
    return (u - g).square().sum()


def smooth(x: Tensor, power: float, mean: bool = False) -> Tensor:
    """Σ |right|^power + |down|^power, or its mean over the pixels, by loops."""
    rows, columns = x.shape[-2:]
    right = [(x[..., i, j + 1] - x[..., i, j]).abs() ** power for i in range(rows) for j in range(columns - 1)]
    down = [(x[..., i + 1, j] - x[..., i, j]).abs() ** power for i in range(rows - 1) for j in range(columns)]
    total = torch.stack([d.sum() for d in right + down]).sum()
    return total / x.numel() if mean else total


def cosine(client: Client, x: Tensor, u: Tensor, g: Tensor) -> Tensor:
    return 1 - torch.nn.functional.cosine_similarity(u, g, dim=0)


def wang(client: Client, x: Tensor, u: Tensor, g: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    right, down = padded[..., :-1, 1:] - x, padded[..., 1:, :-1] - x
    return l2(client, x, u, g) + 0.2 * (right**2 + down**2).pow(1.25).sum()


def statistics(client: Client, x: Tensor) -> Tensor:
    """Of a network whose first layer is its one BatchNorm."""
    norm = client.network.get_submodule("0")
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    return (mean - norm.running_mean).square().sum() + (variance - norm.running_var).square().sum()


def gradinversion(client: Client, x: Tensor, u: Tensor, g: Tensor) -> Tensor:
    return l2(client, x, u, g) + 2 * smooth(x, 1, True) + 0.5 * x.square().mean() + 3 * statistics(client, x)


def cpl(client: Client, x: Tensor, u: Tensor, g: Tensor) -> Tensor:
    predicted = client.network(x).softmax(-1)
    return l2(client, x, u, g) + 2 * (predicted - torch.eye(3, dtype=x.dtype)[Y]).square().sum()


# model -> its beliefs, the loss it stands for, what the loss is multiplied by
HALF = 0.5 / SIGMA**2
LOSSES: dict[str, tuple[dict[str, float], Loss, float]] = {
    "dlg": ({}, l2, HALF),
    "idlg": ({}, l2, HALF),
    "inverting_gradients": (
        {"kappa": KAPPA, "alpha": 0.3}, lambda c, x, u, g: cosine(c, x, u, g) + 0.3 * smooth(x, 1, True), KAPPA,
    ),
    "gradinversion": ({"tv": 2.0, "l2": 0.5, "bn": 3.0}, gradinversion, HALF),
    "cpl": ({"alpha": 2.0}, cpl, HALF),
    "wang": ({"tv": 0.2}, wang, HALF),
    "tag": ({"l1": 0.4}, lambda c, x, u, g: l2(c, x, u, g) + 0.4 * (u - g).abs().sum(), HALF),
    "l2": ({"tv": 0.2}, lambda c, x, u, g: l2(c, x, u, g) + 0.2 * smooth(x, 2), HALF),
    "l1": ({"tv": 0.2}, lambda c, x, u, g: (u - g).abs().sum() + 0.2 * smooth(x, 2), math.sqrt(2) / SIGMA),
    "cosine": ({"kappa": KAPPA, "tv": 0.2}, lambda c, x, u, g: cosine(c, x, u, g) + 0.2 * smooth(x, 2), KAPPA),
}  # fmt: skip
Y = torch.tensor([2, 0])


def normed() -> Client:
    return own(
        lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3)).eval(),
        (1, 3, 3),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_log_density_is_the_published_loss_up_to_a_constant_and_the_stated_scale(name: str) -> None:
    beliefs, loss, scale = LOSSES[name]
    client = normed()
    x, _ = batch_of(client, (6,), 2)
    with torch.no_grad():
        u = torch.stack([client.materialised(one, Y).materialise() for one in x])
        g = client.materialised(x[0].flip(0), Y).materialise() + 0.1
        losses = torch.stack([loss(client, one, each, g) for one, each in zip(x, u, strict=True)]).double()
    bound = attack.believe(programs.load("models", name), known(client, Observation(g), sigma=SIGMA), beliefs)
    built, _ = boxed(density.build(bound, client, Observation(g, 2, Y)))
    found = built(x.flatten(1))

    def fits(values: Tensor) -> bool:
        return torch.allclose(found - found[0], -scale * (values - values[0]), rtol=1e-8, atol=1e-8)

    assert fits(losses)
    assert not fits(1.01 * losses)
    assert not fits(losses + 0.01 * x.flatten(1).square().mean(1))


# -- the optimisers --------------------------------------------------------------------------------------------------


def attacked(name: str = "inverting_gradients") -> tuple[density.Density, Client]:
    client = tiny(shape=(1, 3, 3))
    x, y = batch_of(client)
    x[0, 0, 0] = torch.tensor([0.0, 0.99, 0.0])  # at the border, where clamping shows
    g = client.update(x, y).materialise()
    bound = attack.believe(programs.load("models", name), known(client, Observation(g), sigma=0.01))
    return density.build(bound, client, Observation(g, 1, y)), client


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("decay", ["step", "exponential", "cosine", "none"])
def test_adam_in_the_box_is_the_loop_one_would_write(signed: bool, decay: search.Decay) -> None:
    built, box = boxed(attacked()[0])
    begin, steps, lr = built.sample_prior(2), 16, 0.1

    def by_hand(
        clamp: bool = True, sign: bool = signed, tenths: tuple[int, ...] = (6, 10, 14), beta2: float = search.BETA2
    ) -> Tensor:
        x, m, v = begin.clone(), torch.zeros_like(begin), torch.zeros_like(begin)
        best, best_x = torch.full((2,), -math.inf, dtype=torch.float64), begin.clone()
        for t in range(steps + 1):
            x = x.detach().requires_grad_()
            value = built(x)
            value.sum().backward()
            better = (value > best).detach()
            best, best_x = torch.where(better, value.detach(), best), torch.where(better[:, None], x.detach(), best_x)
            assert x.grad is not None
            slope = -x.grad.sign() if sign else -x.grad
            m, v = 0.9 * m + 0.1 * slope, beta2 * v + (1 - beta2) * slope**2
            rate = {
                "step": lr * 0.1 ** sum(t >= k for k in tenths),
                "exponential": lr * 0.94**t,
                "cosine": lr * (1 + math.cos(math.pi * t / steps)) / 2,
                "none": lr,
            }[decay]
            x = x.detach() - rate * (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - beta2 ** (t + 1))).sqrt() + 1e-8)
            x = x.clamp(box.low, box.high) if clamp else x
        return best_x[best.argsort(descending=True)]

    found = search.maximise(
        built, begin=begin, steps=steps, lr=lr, box=box, decay=decay, optimizer="signed_adam" if signed else "adam"
    )

    def same(other: Tensor) -> bool:
        return torch.allclose(found.z, other, rtol=1e-6, atol=1e-7)

    assert same(by_hand())
    assert not same(by_hand(clamp=False))
    assert not same(by_hand(sign=not signed))
    assert signed or not same(by_hand(beta2=0.999))  # of signs it makes no difference
    assert decay != "step" or not same(by_hand(tenths=(5, 10, 14)))


def test_the_box_is_that_of_bounded_sites_alone_and_lies_inside_the_support() -> None:
    built, client = attacked()
    direct, box = boxed(built)
    x, _ = batch_of(client, (3,))
    values = {"x": x}
    torch.testing.assert_close(direct.unconstrain(values), x.flatten(1))
    torch.testing.assert_close(direct(x.flatten(1)), built(built.unconstrain(values), jacobian=False))
    for corner in (box.low, box.high):
        assert direct(corner[None]).isfinite().all()
    assert float(box.low.min()) >= 0 and float(box.high.max()) < 1 and float((box.high - box.low).min()) > 1 - 1e-6
    free, _ = attacked("logistic")
    _, open_box = boxed(free)
    assert open_box.low.isneginf().all() and open_box.high.isposinf().all()


@pytest.mark.slow
def test_lbfgsb_finds_the_image_at_the_border_that_signed_adam_finds() -> None:
    built, _ = attacked("dlg")
    direct, box = boxed(built)
    torch.manual_seed(0)
    begin = direct.sample_prior(3)
    found = search.maximise(direct, begin=begin, steps=200, optimizer="lbfgs", box=box)
    other = search.maximise(direct, begin=begin, steps=1000, optimizer="adam", lr=0.05, box=box)
    assert float(found.value[0]) == pytest.approx(float(other.value[0]), abs=0.01)
    assert torch.equal(found.value, found.value.sort(descending=True).values)
    torch.testing.assert_close(direct(found.z), found.value)
    assert ((found.z >= box.low) & (found.z <= box.high)).all()
    assert float(other.value[0]) - float(direct(begin).max()) > 1  # there was something to climb


def test_starts_that_seek_consensus_end_closer_together() -> None:
    built, box = boxed(attacked()[0])
    torch.manual_seed(0)
    begin = built.sample_prior(4)

    def spread(consensus: float) -> float:
        return float(
            search.maximise(built, begin=begin, steps=30, lr=0.02, box=box, consensus=consensus).z.std(0).mean()
        )

    assert spread(1e4) < 0.7 * spread(0.0)


# -- what a model's file says ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_its_map_is_its_papers_optimiser_unless_the_user_says_another(name: str) -> None:
    wanted = programs.preferred(name, "map")
    assert wanted.get("box") or name == "tag"
    assert not programs.preferred(name, "hmc")
    target = from_data(network="linear")
    found = attack.attack(target, name, "map", settings={"steps": 2})
    assert found.attrs["settings"] == wanted | {"steps": 2}


@pytest.mark.slow
def test_the_command_line_shows_and_takes_the_models_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: str) -> int:
        tiny_network = ["--network", "linear"]
        return command_line.run(["attack", "--inference", "map", *tiny_network, "--out", str(tmp_path), *argv])

    assert run("--model", "inverting_gradients", "--inference.steps", "3", "--inference.starts", "2") == 0
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["settings"] == {
        "begin": "", "starts": 2, "steps": 3, "lr": 0.1, "optimizer": "signed_adam", "beta2": 0.999, "decay": "step",
        "box": True, "consensus": 0.0, "newton": 0, "polish": 10,
    }  # fmt: skip
    mine = tmp_path / "mine.py"
    mine.write_text(programs.locate("models", "dlg").read_text().replace('"box"', '"boxx"'))
    capsys.readouterr()
    assert run("--model", str(mine)) == 2
    assert "has no setting 'boxx'" in capsys.readouterr().err


# -- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_the_label_of_one_example_is_read_off_its_gradient(bias: bool, label: int) -> None:
    client = own(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4, bias)), (1, 2, 2), 4)
    x, _ = batch_of(client)
    g = client.update(x, torch.tensor([label])).materialise()
    assert label_rules.of_one(client, Observation(g)).tolist() == [label]
    assert label_rules.of_one(client, Observation(-g)).tolist() != [label] or not bias  # the rule looks at the sign


def test_distinct_labels_of_a_batch_are_read_off_its_gradient() -> None:
    client = own(lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 40), nn.Sigmoid(), nn.Linear(40, 6)), (1, 3, 3), 6)
    x, _ = batch_of(client, size=3)
    for wanted in ([0, 2, 5], [1, 3, 4]):
        g = client.update(x, torch.tensor(wanted)).materialise()
        assert label_rules.of_distinct(client, Observation(g, 3)).tolist() == wanted


def test_an_attack_follows_its_models_rule_where_labels_were_not_shared() -> None:
    target = from_data(network="linear", labels_shared=False, sigma=1e-6, index=2)
    truth = from_data(network="linear", index=2).labels
    assert truth is not None
    found = attack.attack(target, "idlg", "map", settings={"steps": 2})
    assert found.y.ravel().tolist() == truth.tolist()
    assert found.attrs["labels"] == "read off the gradient"
    assert "labels" not in attack.attack(target, "dlg", "map", settings={"steps": 2}).attrs


def test_gradients_that_show_no_labels_are_refused_in_one_line() -> None:
    client = tiny()
    g = torch.zeros(client.update_size, dtype=torch.float64)
    with pytest.raises(BadInput, match="of one example, not of 2"):
        label_rules.of_one(client, Observation(g, 2))
    with pytest.raises(BadInput, match="4 examples of 3 classes repeat a label"):
        label_rules.of_distinct(client, Observation(g, 4))
    other = own(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.LayerNorm(3)), (1, 2, 2))
    with pytest.raises(BadInput, match="does not end in a linear layer"):
        label_rules.of_one(other, Observation(torch.zeros(other.update_size, dtype=torch.float64)))


def test_ctrl_c_keeps_the_climb_in_the_box() -> None:
    built, box = boxed(attacked("dlg")[0])

    def stopping(label: str, total: int):  # type: ignore[no-untyped-def]
        yield from range(5)
        raise KeyboardInterrupt

    found = search.maximise(built, starts=1, steps=200, optimizer="lbfgs", box=box, progress=stopping)
    assert found.interrupted
    assert 1 < len(found.curve) < len(search.maximise(built, starts=1, steps=200, optimizer="lbfgs", box=box).curve)
