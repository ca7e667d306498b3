"""`pplleak prior compare`: held-out log-likelihoods."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from command_line import command, one_line

from pplleak import runs
from pplleak.errors import BadInput
from pplleak.priors import _comparison as comparison
from pplleak.priors.gaussian import fit_gaussian
from pplleak.settings import Named


def images(count: int, seed: int) -> torch.Tensor:
    """Of pixels that go together: a Gaussian knows of it, a box does not."""
    generator = torch.Generator().manual_seed(seed)
    shared = 0.1 * torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)
    return 0.5 + shared + 0.03 * torch.randn(count, 1, 3, 3, generator=generator, dtype=torch.float64)


def test_a_score_is_the_mean_log_density_of_images_that_were_not_fitted() -> None:
    train, held_out = images(200, 0), images(250, 1)
    found = comparison.score(Named.parse("gaussian:floor=0.01"), train, held_out)
    exact = fit_gaussian(train, floor=0.01).log_prob(held_out)
    assert found.nats is not None and found.drawn is not None and not found.bound
    torch.testing.assert_close(found.nats, exact)
    row = comparison.row(found, torch.zeros(250, dtype=torch.float64), 9)
    assert row["nats"] == pytest.approx(float(exact.mean())) and row["ahead"] == row["nats"]
    assert row["se"] == pytest.approx(float(exact.std()) / math.sqrt(250))
    assert row["bits_a_dimension"] == pytest.approx(-float(exact.mean()) / (9 * math.log(2)))
    seen = comparison.score(Named.parse("gaussian:floor=0.01"), held_out, held_out)  # the wrong twin: fitted to them
    assert seen.nats is not None and float((seen.nats - found.nats).mean()) > 5 * row["se"] / 10 > 0


def test_a_prior_that_knows_more_is_ahead_and_one_without_a_density_is_last() -> None:
    train, held_out = images(200, 0), images(100, 1)
    base = fit_gaussian(train).log_prob(held_out)
    names = ("tv", "uniform", "gaussian", "logit_normal")
    rows = [comparison.row(comparison.score(Named(n), train, held_out), base, 9) for n in names]
    assert [r["prior"] for r in comparison.best(rows)][-1] == "tv"
    told = {r["prior"]: r for r in rows}
    assert told["gaussian"]["ahead"] == 0.0 and told["uniform"]["ahead"] < -10 * told["uniform"]["ahead_se"]
    black = comparison.row(comparison.score(Named("logit_normal"), train, held_out * 0), base, 9)
    assert black["nats"] is None and black["impossible"] == 100 and "impossible" in comparison.said(black)[0]


def test_a_prior_of_a_file_is_refused_since_it_may_have_seen_the_images(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="may have seen the images"):
        comparison.score(Named("vae", {"file": str(tmp_path / "v.safetensors")}), images(8, 0), images(8, 1))


def test_the_command_goes_on_and_mixes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)]
    assert command("prior", "compare", "gaussian,uniform", *out) == 0
    shown = capsys.readouterr().out
    assert shown.index("gaussian") < shown.index("uniform")
    assert (tmp_path / "gaussian.png").is_file()
    asked: list[str] = []
    real = comparison.score
    monkeypatch.setattr(comparison, "score", lambda prior, *a, **k: asked.append(str(prior)) or real(prior, *a, **k))
    assert command("prior", "compare", "gaussian,uniform,ppca:rank=4", *out) == 0
    assert asked == ["ppca:rank=4"]
    rows = runs.Rows(tmp_path / "priors.csv", comparison.COLUMNS, ("prior",)).read()
    assert {r["prior"] for r in rows} == {"gaussian", "uniform", "ppca:rank=4"}
    one_line(["prior", "compare", "gaussian", "--seed", "1", *out], capsys, "seed")
    one_line(["prior", "compare", "nope", *out], capsys, "unknown prior 'nope'")
    one_line(["prior", "compare", "ppca:rankk=4", *out], capsys, "rankk")
