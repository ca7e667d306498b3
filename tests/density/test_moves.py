"""Discrete sites with too many values to sum over: labels of a batch, and orders, are moved through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import pplleak as pl
from pplleak import programs
from pplleak.density import build, moves
from pplleak.density.density import Density
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.studies.attack.attack import believe

BATCH = 8  # C(17, 8) = 24,310 label counts, and more orders than that of ten examples in batches of four


def scene(**more: Any) -> Observation:
    return pl.observe(pl.Scenario(index=3, batch_size=BATCH, network="mlp:widths=(64,)",
                                  protection="gaussian:sigma=0.0003", **more))  # fmt: skip


def at_truth(observed: Observation, **beliefs: Any) -> tuple[Density, Tensor]:
    model = believe(programs.load("models", "optimal"), observed, {"prior": "uniform", **beliefs})
    density = build(model, observed.client, observed, moves=True)
    assert observed.truth is not None
    return density, density.unconstrain({"x": observed.truth[None].clamp(0.01, 0.99)})


def test_labels_are_moved_to_the_right_ones_at_the_right_images() -> None:
    known = scene()
    density, z = at_truth(replace(known, labels=None))
    assert set(density.moved) == {"y"} and density.discrete == {} and known.labels is not None
    wrong = known.labels.clone()
    wrong[0], wrong[1], wrong[4] = wrong[1].item(), wrong[0].item(), (wrong[4] + 1) % 10
    found = moves.moved(density, z, {"y": wrong[None]})
    assert torch.equal(found["y"][0], known.labels) and not torch.equal(wrong, known.labels)
    other, z_other = density, density.sample_prior(1)  # at other images they are not the best
    assert not torch.equal(moves.moved(other, z_other, {"y": wrong[None]})["y"][0], known.labels)


def test_an_order_is_moved_to_the_right_one_at_the_right_images() -> None:
    local = pl.LocalTraining(0.5, batch_size=3, epochs=2, shuffle=True)
    observed = scene(local=local, dtype="float64")
    density, z = at_truth(observed, sigma=1e-4)
    assert set(density.moved) == {"order"}
    law = density.moved["order"]
    torch.manual_seed(3)
    true, begin = law.sample((2,))
    values = density.constrain(z)[0]["x"]
    g = observed.client.update(values, observed.labels, order=true).materialise()[0]  # type: ignore[arg-type]
    density = replace(density, observed=replace(observed, g=g))
    found = moves.moved(density, z, {"order": begin[None]})["order"][0]
    assert torch.equal(found, true) and not torch.equal(begin, true)


@pytest.mark.slow
def test_map_takes_what_others_refuse() -> None:
    hidden = scene(labels="unknown")
    with pytest.raises(BadInput, match="24310 label counts, too many to enumerate"):
        pl.attack(hidden, inference="laplace", settings={"starts": 2, "steps": 5})
    found = pl.attack(hidden, inference="map", settings={"starts": 2, "steps": 200})
    truth = scene()
    assert truth.labels is not None and truth.truth is not None
    assert sorted(found.y[0, 0].tolist()) == sorted(truth.labels.tolist())
    assert found.attrs["moved"] == ["y"] and found.summary["fits"] is not None
