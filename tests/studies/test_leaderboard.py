"""The leaderboard of a sweep: its order, who is strongest, what is paid, its picture and its page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pplleak.studies.defend import leaderboard
from pplleak.studies.defend.defend import COLUMNS


def cell(defence: str, step: int, attack: str, psnr: float, accuracy: float | None, **more: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(COLUMNS), "dataset": "digits", "network": "mlp", "defence": defence, "strength": "",
        "step": step, "attack": attack, "model": attack, "images": 3, "psnr_mean": psnr, "psnr_se": 0.5,
        "psnr_blind": 11.0, "accuracy": accuracy, "cpu_seconds": 1.0, **more,
    }  # fmt: skip


CELLS = [
    cell("none", 0, "own", 50.0, 0.1), cell("none", 0, "knowing", 55.0, 0.1),
    cell("soteria", 0, "own", 14.0, 0.1), cell("soteria", 0, "knowing", 51.0, 0.1),
    cell("sign", 0, "knowing", 20.0, 0.1, strength="x=<b>"), cell("none", 100, "knowing", 30.0, 0.9),
    cell("soteria", 100, "own", 12.0, 0.85), cell("soteria", 100, "knowing", 10.0, 0.85),
    cell("sign", 100, "knowing", 15.0, 0.4, strength="x=<b>"),
]  # fmt: skip


def test_defences_are_ranked_by_their_strongest_adversary_at_every_step() -> None:
    rows = leaderboard.board(CELLS)
    assert len(rows) == len(CELLS) and sorted(rows[0]) == sorted(leaderboard.BOARD)  # each column once
    strongest = [(r["step"], r["rank"], r["defence"], r["attack"]) for r in rows if r["strongest"]]
    assert strongest == [
        (0, 1, "sign", "knowing"), (0, 2, "soteria", "knowing"), (0, 3, "none", "knowing"),
        (100, 1, "soteria", "own"), (100, 2, "sign", "knowing"), (100, 3, "none", "knowing"),
    ]  # fmt: skip
    claimed = [c for c in CELLS if c["attack"] == "own" or c["defence"] == "sign"]  # by papers' own attacks alone
    assert [r["defence"] for r in leaderboard.board(claimed) if r["strongest"]][:3] == ["soteria", "sign", "none"]
    paid = {(r["defence"], r["step"]): r["accuracy_paid"] for r in rows}
    assert paid["soteria", 100] == pytest.approx(0.05) and paid["sign", 100] == pytest.approx(0.5)
    assert paid["none", 100] == 0


def test_what_is_not_known_of_accuracy_is_not_said_to_be_paid() -> None:
    rows = leaderboard.board([cell("sign", 0, "knowing", 20.0, 0.1), cell("topk", 0, "knowing", 30.0, None)])
    assert [r["accuracy_paid"] for r in rows] == [None, None]


def test_the_page_has_a_line_a_defence_and_step_and_nothing_from_outside() -> None:
    rows = leaderboard.board(CELLS)
    page = leaderboard.page(rows, "pplleak defend --out <here>")
    assert page.count("<tr><td>") == 6 and "51.0 ± 0.5" in page and "14.0 ± 0.5" in page
    assert "&lt;b&gt;" in page and "&lt;here&gt;" in page and "<b>" not in page
    assert "http" not in page and page.count("src=") == 1 and f"src='{leaderboard.PICTURE}'" in page
    panels = leaderboard.picture(rows).axes
    assert [a.get_title(loc="left") for a in panels[:2]] == ["weights after 0 steps", "weights after 100 steps"]
    drawn = sorted(float(np.ravel(line.get_ydata())[0]) for line in panels[0].get_lines() if line.get_marker() == "o")
    assert drawn == [20.0, 51.0, 55.0]


def test_a_sweep_without_an_undefended_client_has_a_picture_that_places_nobody() -> None:
    """What is paid is not known; what the mean image scores is."""
    axes = leaderboard.picture(leaderboard.board([c for c in CELLS if c["defence"] != "none"])).axes[0]
    assert [float(np.ravel(line.get_ydata())[0]) for line in axes.get_lines()] == [11.0]


def test_numbers_of_points_that_lie_together_are_one_text() -> None:
    points = [(0.0, 60.0, 1), (2.0, 60.0, 2), (4.0, 59.0, 3), (0.0, 10.0, 4), (90.0, 10.0, 5)]
    assert leaderboard.numbered(points) == [(0.0, 10.0, "4"), (4.0, 59.0, "1, 2,\n3"), (90.0, 10.0, "5")]
    assert leaderboard.numbered([(1.0, 2.0, 7)]) == [(1.0, 2.0, "7")] and leaderboard.numbered([]) == []
