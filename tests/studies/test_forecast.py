"""What an attack will take is said before it begins: counted, compared with what there is, and timed."""

from __future__ import annotations

import functools

import pytest
import torch
from scenes import from_data

from pplleak import memory
from pplleak.density import build
from pplleak.errors import BadInput
from pplleak.programs import MODEL, load
from pplleak.studies.attack.attack import believe
from pplleak.studies.attack.forecast import Forecast, forecast, peak, step

SIDE = 200
MATRIX = 4 * SIDE**2  # bytes


def test_the_peak_is_that_of_what_is_alive_together() -> None:
    x = torch.ones(SIDE, SIDE)

    def freed() -> None:
        y = x * 2
        z = y * 3
        del y
        z + 1

    def kept() -> None:  # wrong twin: the same operations, of which one's result lives longer
        y = x * 2
        z = y * 3
        z + y

    def differentiated() -> None:
        a = x.clone().requires_grad_()
        (a.sin().exp() * a).sum().backward()

    assert peak(freed) == 2 * MATRIX
    assert peak(kept) == 3 * MATRIX
    assert 4 * MATRIX < peak(differentiated) < 6 * MATRIX
    assert peak(lambda: None) == 0


@pytest.mark.parametrize("network", ["mlp", "lenet"])
def test_many_starts_take_what_one_and_two_foretell(network: str) -> None:
    observed = from_data(network=network)
    told = forecast(observed, MODEL, "map", {}, {"starts": 24, "steps": 5})
    density = build(believe(load("models", MODEL), observed, {}), observed.client, observed)
    taken = peak(step(density, density.sample_prior(24)))
    assert told is not None and (told.starts, told.steps) == (24, 5)
    assert told.bytes == pytest.approx(taken, rel=0.1)
    assert peak(step(density, density.sample_prior(12))) < 0.8 * taken


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


def test_more_than_there_is_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = from_data()
    monkeypatch.setattr(memory, "available", lambda: 10 * 2**20)
    with pytest.raises(BadInput, match=r"a step of 100000 starts takes about .* GiB of memory.*take fewer starts"):
        forecast(observed, MODEL, "map", {}, {"starts": 100_000, "steps": 5})
    assert forecast(observed, MODEL, "map", {}, {"starts": 2, "steps": 5}) is not None


@pytest.mark.parametrize(
    ("seconds", "steps", "said"),
    [(0.001, 10, "about 1 s"), (0.02, 400, "about 8 s"), (2.0, 400, "about 13 min"), (30.0, 1000, "about 8.3 h")],
)
def test_times_are_said_as_people_say_them(seconds: float, steps: int, said: str) -> None:
    assert said in str(Forecast(8, steps, seconds, 0.0, 0))
    assert "GiB" not in str(Forecast(8, steps, seconds, 0.0, 0))
    assert "; 2 GiB of memory" in str(Forecast(8, steps, seconds, 2.0 * memory.GIB, 0))
