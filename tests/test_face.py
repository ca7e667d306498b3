"""The ten lines that a user meets first (docs: the tour), run as they stand there."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import pplleak as pl

QUICK = {"starts": 2, "steps": 40, "chains": 4, "draws": 20, "warmup": 10}


@pytest.mark.slow
def test_the_ten_lines_of_the_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scenario = pl.Scenario(data="digits", index=3, network="mlp", protection="gaussian:sigma=0.1")
    observed = pl.observe(scenario)
    posterior = pl.attack(observed, prior="ppca:rank=16", inference="hmc", seed=0, settings=QUICK)
    assert posterior.verdict and posterior.mean.shape == (1, 1, 8, 8) and posterior.sd.mean() > 0
    pl.plot(posterior).savefig("attack.png")
    assert "posterior" in posterior.to_arviz().children
    assert Path("attack.png").stat().st_size > 1000
    client = pl.Client(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), input_shape=(1, 28, 28), loss="cross_entropy")
    assert client.num_classes == 10 and client.lazy


@pytest.mark.slow
def test_an_observation_that_is_saved_is_attacked_as_the_one_that_was_not(tmp_path: Path) -> None:
    observed = pl.observe(pl.Scenario(index=5, protection="topk:rate=0.5,sigma=0.05"))
    pl.save(observed, tmp_path / "shared.safetensors")
    again = pl.load(tmp_path / "shared.safetensors", public=observed.public)
    assert str(again.protection) == str(observed.protection) == "topk:sigma=0.05,rate=0.5"
    assert again.truth is None
    one, other = (pl.attack(o, inference="map", settings={"starts": 2, "steps": 5}) for o in (observed, again))
    assert (one.mode == other.mode).all()
    assert one.attrs["beliefs"]["channel"] == "topk:sigma=0.05,rate=0.5"  # the model follows the channel


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: pl.Scenario(protection="gausian"), "did you mean gaussian"),
        (lambda: pl.Scenario(protection="topk:rat=1"), "no setting 'rat'"),
        (lambda: pl.Scenario(protection="sign+topk"), "two channels"),
        (lambda: pl.Scenario(batch_size=0), "at least 1"),
        (lambda: pl.Scenario(labels="shared"), "known or unknown"),
        (lambda: pl.observe(pl.Scenario(device="gpu")), "no device 'gpu'"),
        (lambda: pl.Client(nn.Linear(4, 1), (4,)), "one logit"),
        (lambda: pl.Client(nn.Linear(4, 2), (4,), loss="cross"), "did you mean cross_entropy"),
    ],
)
def test_a_mistake_is_one_line_that_says_how_to_mend_it(make: object, expected: str) -> None:
    with pytest.raises(pl.BadInput, match=expected):
        make()  # type: ignore[operator]
