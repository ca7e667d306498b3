"""Which inference an attack takes where none was named."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import command
from scenes import from_data
from torch import Tensor, nn

from pplleak import programs
from pplleak.density import surrogate
from pplleak.posterior import Posterior
from pplleak.studies.attack import attack

RELU = {"activation": "relu"}
TINY = [f"--inference.{s}" for s in ("chains=2", "draws=8", "warmup=4", "starts=2", "steps=5")]


FUNCTIONAL = f"{__file__}:functional"


class Functional(nn.Module):
    """A kink that is no module, and so cannot be taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 5), nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(1)).relu())


def functional(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Functional()


run = functools.partial(command, "attack")


@pytest.mark.parametrize(
    ("target", "model", "name", "said"),
    [
        ({}, "optimal", "hmc", "smooth"),
        ({"settings": RELU}, "optimal", "refractive", "kinks (relu), and this sampler is exact there"),
        ({"settings": {"activation": "leaky_relu"}}, "optimal", "refractive", "kinks (leaky_relu)"),
        ({"settings": RELU}, "dlg", "billiard", "is exact there"),
        ({"settings": RELU, "batch_size": 2}, "optimal", "billiard", "is exact there"),
        ({"network": "convnet", "settings": RELU, "sigma": 0.01}, "optimal", "billiard", "is exact there"),
        ({"network": "convnet", "settings": RELU, "sigma": 1.0}, "optimal", "elliptical", "is exact there"),
        ({"network": FUNCTIONAL, "sigma": 0.01}, "optimal", "hmc", "no sampler that is exact there takes it"),
    ],
    ids=["smooth", "relu", "leaky relu", "uniform prior", "batch", "convolutions", "noise", "functional relu"],
)
def test_the_exact_sampler_that_takes_the_kinks_is_chosen(
    target: dict[str, Any], model: str, name: str, said: str
) -> None:
    chosen, why = attack.choose(from_data(**target), model)
    assert chosen == name and said in why


def test_a_surrogate_is_smooth_and_so_is_its_choice() -> None:
    target = surrogate.believed(from_data(settings=RELU), 100)
    assert attack.choose(target) == ("hmc", "the network is smooth")


def test_whoever_declines_says_so_before_it_runs() -> None:
    """What is chosen also runs: `declines` and `run` refuse the same."""
    asked = programs.declining()
    assert "refractive" in asked and "hmc" not in asked and "map" not in asked
    found = attack.attack(
        from_data(settings=RELU),
        settings={"chains": 2, "draws": 3, "warmup": 2, "starts": 2, "steps": 5},
    )
    assert found.attrs["inference"] == "refractive" and "kinks" in found.attrs["chosen"]


@pytest.mark.slow
def test_the_choice_is_said_on_the_terminal_and_in_the_files_and_takes_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--network.activation", "relu", "--out", str(tmp_path), *TINY) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("inference refractive: the network has kinks (relu)")
    assert "optimal × refractive" in shown
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["inference"] == "refractive" and "kinks (relu)" in summary["chosen"]
    assert Posterior.load(tmp_path / "posterior.nc").x.shape[:2] == (2, 8)


@pytest.mark.slow
@pytest.mark.usefixtures("short_trajectories")
def test_nothing_is_said_of_a_smooth_network_and_of_what_was_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--out", str(tmp_path), *TINY) == 0
    assert not capsys.readouterr().out.startswith("inference")
    assert json.loads((tmp_path / "summary.json").read_text())["chosen"] == "the network is smooth"
    assert run("--inference", "hmc", "--network.activation", "relu", "--out", str(tmp_path), *TINY) == 0
    shown = capsys.readouterr()
    assert not shown.out.startswith("inference") and "kinks" in shown.err
    assert json.loads((tmp_path / "summary.json").read_text())["chosen"] is None


def test_a_mistake_in_a_setting_of_what_is_chosen_is_still_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--network.activation", "relu", "--inference.moves", "3", "--out", str(tmp_path)) == 2
    assert "moves" in capsys.readouterr().err


def test_help_needs_no_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "--inference.chains" in capsys.readouterr().out


def test_a_prior_that_a_models_name_carries_is_the_one_of_records_too(tmp_path: Path) -> None:
    import tables  # of the tests

    observed, _ = tables.shared(tables.written(tmp_path / "houses.csv"))
    for name, given, expected in (
        ("optimal", {}, "records"),
        ("optimal:prior=gaussian", {}, "gaussian"),
        ("optimal:prior=gaussian", {"prior": "records"}, "records"),
    ):
        bound = attack.believe(programs.load("models", name), observed, given)
        assert str(bound.keywords["prior"]) == expected
