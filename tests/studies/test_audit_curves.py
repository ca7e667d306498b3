"""What the report draws: curves with bounds that hold, a frontier, and drawings that stand in the page safely."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from scipy import stats

from pplleak.data import Images
from pplleak.studies.audit import curves, figures, frontier, words
from pplleak.studies.audit.curves import DELTAS, Group, Guess

HOSTILE = "<script>alert(1)</script>$\\alpha$"


def test_a_guess_s_mass_is_that_of_images_whose_law_is_known() -> None:
    generator = np.random.default_rng(0)
    x = 0.5 + 0.1 * torch.tensor(generator.standard_normal((1200, 1, 2, 2)), dtype=torch.float32)
    made = curves.guess(Images(x, torch.tensor(generator.integers(0, 2, 1200)), ("a", "b")))
    for delta, (value, upper) in zip(DELTAS, made.any, strict=True):
        exact = float(stats.chi2.cdf(4 * (delta / 0.1) ** 2, 4))  # within δ, RMS of 4 pixels, of the mean
        se = math.sqrt(exact * (1 - exact) / 300) + 1e-3
        assert value < exact + 4 * se and upper > exact - 2 * se, delta
        assert value > exact - 5 * se - 0.05  # a ball that is nearly the best
    assert all(k[1] >= a[0] for k, a in zip(made.known, made.any, strict=True))


def test_epsilon_of_one_step_is_that_of_the_analytic_gaussian_mechanism() -> None:
    for z in (0.5, 1.0, 4.0):
        eps = curves.epsilon(z)
        grid = np.linspace(-60, 60, 400_001)  # ∫ max(0, μ − e^ε ν) = δ, the definition itself
        mu, nu = stats.norm.pdf(grid, 1, z), stats.norm.pdf(grid, 0, z)
        assert np.trapezoid(np.maximum(mu - np.exp(eps) * nu, 0), grid) == pytest.approx(curves.DELTA, rel=1e-3)
        assert curves.noise(eps) == pytest.approx(z, rel=1e-6)
    assert curves.epsilon(0.5) > curves.epsilon(1.0) > curves.epsilon(4.0) > 0


def row(name: str, attack: str, near: list[float], protection: str = "none", **more: Any) -> dict[str, Any]:
    said = {"protected": "no protection", "labels": "read off the gradient", "examples": 2}
    return {"name": name, "attack": attack, "near": near, "protection": protection, **said, **more}


def test_a_curve_is_of_one_attack_and_what_it_had_no_result_for_counts_as_no_success() -> None:
    rows = [row("a", "map", [30.0, 10.0]), row("b", "map", [5.0, 5.0]), row("a", "quotient", [60.0, 60.0]),
            row("b", "quotient", [])]  # fmt: skip
    (group,) = curves.groups(rows)
    assert group.attack == "quotient" and len(group.errors) == 4  # 2 of 4 everywhere, against 1 of 4
    assert group.realised(DELTAS[0])[0] == 0.5 and group.realised(DELTAS[-1])[0] == 0.5
    share, low, high = group.realised(0.1)
    assert low < share < high and low == pytest.approx(float(stats.beta.ppf(0.025, 2, 3)))
    assert curves.groups([row("a", "map", [])]) == []
    assert curves.noise_of("dpsgd:noise_multiplier=2") == 2 and curves.noise_of("gaussian:sigma=1") is None
    assert curves.noise_of("nothing:known=1") is None and curves.noise_of("soteria+dpsgd") is None


def test_realised_success_under_dp_sgd_stays_below_its_limit_and_a_wrong_noise_is_told() -> None:
    generator, kappa, z, n = np.random.default_rng(1), 0.05, 1.0, 4000
    hits = generator.uniform(size=n) < stats.norm.cdf(stats.norm.ppf(kappa) + 1 / z)  # the best adversary there can be
    errors = np.where(hits, 0.05, 1.0)
    guessed = Guess(100, [(kappa, kappa)] * len(DELTAS), [])
    right, wrong = (Group("dp", "map", errors, noise, True) for noise in (z, 3.0))
    assert right.realised(0.1)[1] <= (right.limit(kappa) or 0)
    assert "No attack whatever" in curves.sentences([right], guessed)[0]
    assert "not what the file says" in curves.sentences([wrong], guessed)[0]
    assert Group("x", "map", errors, None, True).limit(kappa) is None


def test_a_guess_that_beats_the_attack_is_said() -> None:
    guessed = Guess(100, [(k, k + 0.1) for k in (0.0, 0.0, 0.0, 0.1, 0.3, 0.5, 0.6, 0.8)], [])
    weak, strong = (Group("no protection", "map", np.array(e), None, False)
                    for e in ([0.02, 0.3, 0.5, 0.5], [0.01, 0.02, 0.02, 0.03]))  # fmt: skip
    assert "At errors of 0.14 to 0.4, that guess comes near to more examples than map" in curves.beaten(weak, guessed)
    assert curves.beaten(weak, guessed) in curves.sentences([weak], guessed)[0]
    assert curves.beaten(strong, guessed) == ""


def test_what_is_best_at_equal_utility_is_said_where_all_were_trained() -> None:
    trained = {"none": 0.9, "small": 0.89, "large": 0.5}
    rows = [{"name": "a", "attack": "map", "gain": 20.0, "cosine": 1.0}]
    anew = [rows[0] | {"behind": n, "gain": g, "cosine": c} for n, g, c in (("small", 12.0, 0.7), ("large", 1.0, 0.9))]
    found = frontier.points(rows, anew, trained, "none")
    assert [p.left for p in found] == [0.9, 0.89, 0.5]
    said = " ".join(frontier.sentences(found))
    assert "At equal utility (accuracy within 2% of 90.0%), small hides most: 12.0 dB" in said
    assert "large leaves most accuracy: 50.0%" in said
    assert "accuracy after the training" in figures.tradeoff(found)
    some = frontier.points(rows, anew, {"none": 0.9, "small": 0.89}, "none")  # one was not trained: the update's cosine
    assert [p.left for p in some] == [1.0, 0.7, 0.9] and "equal utility" not in " ".join(frontier.sentences(some))
    nothing = frontier.points(rows, anew, trained | {"small": 0.6}, "none")
    assert "None that costs less than 2% of the accuracy" in " ".join(frontier.sentences(nothing))


def counted_row(name: str, attack: str, right: int | None, guess: int, behind: str = "", **more: Any) -> dict[str, Any]:
    said = {"name": name, "attack": attack, "gain": None, "unit": "tokens", "units": 10, "right": right}
    return said | {"guess_right": guess, "behind": behind, "cosine": 0.5, "named": None} | more


def test_errors_of_a_guess_that_are_gone_are_pooled_over_the_updates() -> None:
    behind = [counted_row("a", "spear", 7, 6, "sign"), counted_row("a", "gibbs", 9, 6, "sign"),
              counted_row("b", "spear", None, 2, "sign"), counted_row("b", "gibbs", 6, 2, "sign"),
              counted_row("c", "gibbs", None, 2, "sign")]  # fmt: skip
    (sign,) = frontier.points([], behind)
    assert sign.gain == pytest.approx(7 / 12) and sign.error == pytest.approx(1 / 9)  # by hand
    assert sign.gain != pytest.approx((3 / 4 + 4 / 8) / 2)  # the twin: an average of shares
    assert (sign.updates, sign.missing, sign.seen, sign.spread) == (2, 1, "58%", " ± 11%")
    (whole,) = frontier.points([], [counted_row("a", "gibbs", 10, 10, "sign")])
    assert whole.gain is None and whole.missing == 1  # a guess that is right everywhere leaves nothing to see
    (worse,) = frontier.points([], [counted_row("a", "gibbs", 4, 6, "sign")])
    assert worse.gain == pytest.approx(-0.5) and worse.little


def test_what_hides_records_is_said_in_errors_and_words_that_are_named_are_not_hidden() -> None:
    rows = [counted_row("a", "dager", 10, 2)]
    anew = [counted_row("a", "dager", 3, 2, "one", named=5), counted_row("a", "dager", 4, 2, "two", cosine=0.2)]
    found = frontier.points(rows, anew)
    said = " ".join(frontier.sentences(found))
    assert "less than half of a guess's errors, two leaves most of the update" in said and "dB" not in said
    assert "(share of them that is gone: 25%; as recorded: 100%)" in said
    assert "Behind one, the rows of the embeddings' gradient still name the words" in said
    assert "two leaves" not in " ".join(frontier.sentences(found[:2])) and found[1].little
    assert "and names no words; the nearest to that is one" in " ".join(frontier.sentences(found[:2]))
    drawn = figures.tradeoff(found)
    assert "errors that attacks are without" in drawn and "public sentences" in drawn and "dB" not in drawn
    little = frontier.points([counted_row("a", "dager", 3, 2)], anew)
    assert "are without 12% of a guess's errors: where they see so little" in frontier.sentences(little)[1]


POINTS = [
    frontier.Point(frontier.RECORDED, 8.0, 1.0, 1.0, 4, 0),
    frontier.Point("gaussian:sigma=1", 1.0, 0.5, 0.2, 4, 0),
    frontier.Point("topk:rate=0.9", 2.0, None, 0.7, 4, 0),
    frontier.Point("sign", 6.0, None, 0.6, 4, 0),  # topk beats it in both
    frontier.Point("dpsgd", None, None, None, 0, 4, why="no time was left"),
]


def test_the_frontier_is_what_no_other_beats_and_its_sentence_names_what_hides_most_for_least() -> None:
    assert [p.name for p in frontier.best(POINTS)] == ["gaussian:sigma=1", "topk:rate=0.9", "as recorded"]
    said = " ".join(frontier.sentences(POINTS))
    assert "topk:rate=0.9 leaves most" in said and "as recorded: 8.0)" in said and "A better attack" in said
    assert "No attack had a result behind dpsgd (no time was left)." in said
    (none,) = frontier.sentences([POINTS[0], POINTS[4]])
    assert none.endswith("no attack had a result behind dpsgd (no time was left).")
    assert "None brings" in " ".join(frontier.sentences([POINTS[0], POINTS[3]]))
    little = frontier.Point(frontier.RECORDED, 0.8, 1.0, 1.0, 4, 0)
    assert "cannot tell what protects" in frontier.sentences([little, *POINTS[1:]])[1]
    said = (("a", "map", 3.0), ("a", "auto", 9.0), ("b", "map", 5.0), ("c", "map", 20.0))
    rows = [{"name": n, "attack": a, "gain": g} for n, a, g in said]
    anew = [{"name": n, "attack": "map", "gain": g, "cosine": c, "behind": "sign"} for n, g, c in
            (("a", 1.0, 0.5), ("b", None, 0.7))]  # fmt: skip
    plain, sign = frontier.points(rows, anew)
    assert (plain.gain, plain.updates, plain.cosine) == (4.0, 2, 1.0)  # by map, of a and b
    assert (sign.gain, sign.cosine, sign.updates, sign.missing) == (1.0, pytest.approx(0.6), 1, 1)
    assert words.first_screen([], ["tried"])["protect"][0] == "tried"


@pytest.mark.slow
def test_drawings_are_safe_and_wear_the_page_s_colours() -> None:
    guessed = Guess(100, [(0.05, 0.1)] * len(DELTAS), [])
    found = [Group(HOSTILE, HOSTILE, np.array([0.05, 0.5]), 2.0, False)]
    points = [*POINTS, frontier.Point(HOSTILE, 1.0, 0.1, 0.5, 2, 0)]
    ids: list[str] = []
    for drawn in (figures.risk(found, guessed), figures.privacy(found, guessed), figures.tradeoff(points)):
        tree = ElementTree.fromstring(drawn)
        tags = {e.tag.rpartition("}")[2] for e in tree.iter()}
        assert (
            tags <= {"svg", "g", "defs", "style", "path", "text", "tspan", "use", "clipPath", "rect"} and "path" in tags
        )
        assert "var(--link)" in drawn and not re.search("#01020", drawn) and 'role="img"' in drawn
        own = [e.attrib["id"] for e in tree.iter() if "id" in e.attrib]
        used = re.findall(r'(?:url\(|href=")#([^)"]+)', drawn)
        assert set(used) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))  # three drawings stand in one page
    assert figures.risk([], guessed) == figures.privacy(found, None) == figures.tradeoff(POINTS[:1]) == ""
