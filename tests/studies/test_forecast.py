"""What an attack will take is said before it begins: counted, compared with what there is, and timed."""

from __future__ import annotations

import functools

import pytest
import torch
from scenes import from_data

from pplleak import memory
from pplleak.density import build, room
from pplleak.density.footprint import peak
from pplleak.programs import MODEL, load
from pplleak.studies.attack.attack import believe
from pplleak.studies.attack.forecast import Forecast, forecast


def test_a_step_takes_what_is_told() -> None:
    few, many = (forecast(from_data(), MODEL, "map", {}, {"starts": k, "steps": 5}) for k in (6, 24))
    assert few is not None and many is not None and (many.starts, many.steps) == (24, 5)
    density = build(believe(load("models", MODEL), from_data(), {}), from_data().client, from_data())
    z = density.sample_prior(24)
    assert many.bytes == pytest.approx(peak(lambda: density.value_and_grad(z)), rel=0.1)
    assert few.bytes < 0.8 * many.bytes and 0 < many.seconds < 5


def test_the_numbers_of_a_seed_are_as_if_nothing_had_been_foretold() -> None:
    foretell = functools.partial(forecast, from_data(), MODEL, "map", {}, {"starts": 2, "steps": 5})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert foretell() is not None
    assert torch.equal(torch.rand(2), expected)


def test_settings_are_those_that_the_attack_will_have() -> None:
    observed = from_data()
    dlg = forecast(observed, "dlg", "map", {}, {})
    ours = forecast(observed, MODEL, "map", {}, {"starts": 3})
    assert dlg is not None and ours is not None and ours.starts == 3
    assert (dlg.starts, dlg.steps) != (3, ours.steps)  # those that the model's file wants
    assert forecast(observed, MODEL, "spear", {}, {}) is None  # which does not search in a density
    assert forecast(observed, MODEL, "map", {}, {"starts": 0}) is None  # the attack itself will refuse it


def test_starts_that_do_not_fit_together_go_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    foretell = functools.partial(forecast, from_data(network="lenet"), MODEL, "map", {}, {"starts": 24, "steps": 5})
    whole = foretell()
    monkeypatch.setattr(room, "ROOM", 2**10)
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    parts = foretell()
    assert whole is not None and parts is not None
    assert parts.bytes < 2**20 < whole.bytes


@pytest.mark.parametrize(
    ("seconds", "steps", "said"),
    [(0.001, 10, "about 1 s"), (0.02, 400, "about 8 s"), (2.0, 400, "about 13 min"), (30.0, 1000, "about 8.3 h")],
)
def test_times_are_said_as_people_say_them(seconds: float, steps: int, said: str) -> None:
    assert said in str(Forecast(8, steps, seconds, 0.0))
    assert "GiB" not in str(Forecast(8, steps, seconds, 0.0))
    assert "; 2 GiB of memory" in str(Forecast(8, steps, seconds, 2.0 * memory.GIB))
