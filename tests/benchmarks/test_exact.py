"""The table of the exact posterior: what it pairs, and that both samplers give its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import rows

from pplleak.client.networks.convnet import convnet

COMMON = {"dataset": "mnist", "network": "convnet", "step": "0"}
PSNR = {"mean": (14.0, 11.0), "l2": (10.0, 12.0), "l1": (11.5, 10.0), "cosine": (3.0, 4.0)}


def own(index: str, **values: float) -> dict[str, str]:
    about = {**COMMON, "sigma": "0.1", "sampler": "billiard", "prior": "class_gaussian", "index": index}
    usual = {"coverage_90": 0.9, "psnr_claimed": 15.0, "ess_min": 50, "seconds": 240, "rhat_max": 1.05}
    return {**about, "khat": "", **{n: str(v) for n, v in {**usual, **values}.items()}}


@pytest.fixture()
def mine() -> list[dict[str, str]]:
    return [
        own("3", psnr=16.0, psnr_map=15.0, psnr_label=13.0),
        own("8", psnr=14.0, psnr_map=14.5, psnr_label=12.0, rhat_max=1.005),
    ]


@pytest.fixture()
def others() -> list[dict[str, str]]:
    """Rows of the other table: of these images, of another one, and behind other noise."""
    found = [
        {**COMMON, "defence": "gaussian", "mask_known": "", "attack": name, "index": index, "psnr": str(value)}
        for name, values in PSNR.items()
        for index, value in zip(("3", "8"), values, strict=True)
    ]
    stranger = [{**row, "index": "5", "psnr": "99"} for row in found]
    return [*found, *stranger, *({**row, "defence": "laplace", "psnr": "99"} for row in found)]


def test_differences_are_paired_with_the_same_images_behind_the_same_noise(
    paper: Callable[[str], ModuleType], mine: list[dict[str, str]], others: list[dict[str, str]]
) -> None:
    script = paper("exact")
    (row,) = script.summarise(mine, others)
    assert row["best_baseline"] == "l2" and row["images"] == 2
    assert row["delta_vs_best_baseline"] == pytest.approx(np.mean([6.0, 2.0]))
    assert row["delta_vs_softened"] == pytest.approx(np.mean([2.0, 3.0]))
    assert row["delta_vs_map"] == pytest.approx(0.25) and row["delta_vs_map_se"] == pytest.approx(0.75)
    assert row["delta_vs_no_gradient"] == pytest.approx(2.5)
    assert (row["converged"], row["usable"], row["rhat_worst"]) == (1, 2, 1.05)
    said = script.facts(mine, others)
    assert said["converged"] == "1" and said["alone_best"].startswith("+2.00")
    assert said["wins"] == "1 of 2" and said["over_best"].startswith("+4.00") and said["known"].startswith("12.50")


def test_a_baseline_that_lacks_an_image_is_not_compared(
    paper: Callable[[str], ModuleType], mine: list[dict[str, str]], others: list[dict[str, str]]
) -> None:
    fewer = [r for r in others if (r["attack"], r["index"]) != ("l2", "8")]
    (row,) = paper("exact").summarise(mine, fewer)
    assert row["best_baseline"] == "l1"


def test_chains_that_did_not_converge_are_drawn_again_where_they_have_over_twice_the_time(
    paper: Callable[[str], ModuleType], mine: list[dict[str, str]]
) -> None:
    script = paper("exact")
    open_, settled = mine  # of four minutes each
    assert [script.cut_short(open_, minutes) for minutes in (4.0, 8.0, 8.1)] == [False, False, True]
    assert not script.cut_short(settled, 60.0)
    assert not script.cut_short({**open_, "sampler": "softened"}, 60.0)
    assert script.converged([*mine, {**settled, "rhat_max": ""}]) == [settled]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["auto", "billiard", "elliptical", "softened"])
def test_a_row_an_image_is_kept(
    paper: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    assert convnet.__kwdefaults__ is not None
    monkeypatch.setattr(convnet, "__kwdefaults__", convnet.__kwdefaults__ | {"channels": (4, 6), "width": 16})
    monkeypatch.setenv("PPLLEAK_CACHE", str(tmp_path / "cache"))
    script = paper("exact")
    effort = paper("attacks").Effort(steps=3, chains=4, warmup=2, draws=30, rank=4)
    asked: dict[str, Any] = {"dataset": "digits", "sampler": sampler, "images": 1, "minutes": 0.25, "warmup": 3,
                             "chains": 4, "superchains": 2, "settle": 1, "starts": 1, "workers": 1,
                             "softened": effort, "out": tmp_path}  # fmt: skip
    assert script.main(script.Settings(**asked))
    (row,) = rows(tmp_path / "exact_images.csv")
    assert row["sampler"] == sampler and int(row["draws"]) >= 1
    assert (row["khat"] == "") == (sampler != "softened"), "k-hat is of softened chains alone"
    assert len((tmp_path / "exact.md").read_text().splitlines()) == 3
