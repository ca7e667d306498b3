"""Several priors, averaged by their evidence."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import one_line, run
from conftest import tiny
from scenes import from_data

from pplleak import priors
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.posterior import Posterior
from pplleak.posterior.information import Estimate
from pplleak.settings import Named
from pplleak.studies.attack import averaging
from pplleak.studies.attack.attack import attack

SIGMA, TRIALS = 0.03, 12
NARROW, WIDE = Named.parse("gaussian:floor=0.05"), Named.parse("gaussian:floor=0.4")


def belief(value: float, evidence: float, *, doubts: tuple[str, ...] = (), se: float | None = None) -> averaging.Belief:
    x = np.full((4, 500, 1, 1, 2, 2), value)
    made = Posterior(
        x=x, y=np.zeros((4, 500, 1), np.int64), mode=x[0, 0], kind="sampler", reasons=doubts, attrs={"bits": 3.0}
    )
    return averaging.Belief(Named("gaussian", {"floor": 0.1 + value}), made, Estimate(evidence, se))


def shares(posterior: Posterior, values: tuple[float, ...]) -> np.ndarray:
    return np.array([(posterior.x[..., 0, 0, 0, 0] == v).mean() for v in values])


def test_draws_come_from_each_prior_as_often_as_its_weight_says() -> None:
    beliefs = [belief(0.0, 0.0), belief(1.0, math.log(3)), belief(2.0, -80.0)]
    made, draws = averaging.average(beliefs), 2000
    right = np.array([0.25, 0.75, 0.0])

    def close(expected: np.ndarray) -> bool:
        return bool((abs(shares(made, (0.0, 1.0, 2.0)) - expected) <= 4 * np.sqrt(right * (1 - right) / draws)).all())

    assert close(right) and not close(np.full(3, 1 / 3)) and not close(right[[1, 0, 2]])
    assert [round(b["weight"], 3) for b in made.attrs["priors"]] == [0.25, 0.75, 0.0]
    assert made.mode[0, 0, 0, 0] == 1.0
    # log p(g) = log mean of the evidences, and the bits at the truth are those against it
    assert made.attrs["log_evidence"] == pytest.approx(math.log((1 + 3) / 3), abs=1e-9)
    assert made.attrs["bits"] == pytest.approx(3.0 + math.log2(3 / (4 / 3)))


def test_doubts_are_those_of_the_priors_that_count() -> None:
    beliefs = [belief(0.0, 0.0), belief(1.0, -2.0, doubts=("lost",)), belief(2.0, -9.0, doubts=("gone",))]
    reasons = averaging.average(beliefs).reasons
    assert any(r.endswith("lost") for r in reasons) and not any(r.endswith("gone") for r in reasons)
    vague = [belief(0.0, 0.0, se=1.0), belief(1.0, -1.0, se=1.0)]
    assert any("may be another" in r for r in averaging.average(vague).reasons)
    assert not any("may be another" in r for r in averaging.average([belief(0.0, 0.0), belief(1.0, -1.0)]).reasons)


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(BadInput, match="named twice"):
        averaging.attacked([NARROW, NARROW], lambda _: (belief(0.0, 0.0).posterior, Estimate(0.0, None)))
    with pytest.raises(BadInput, match="this inference gives none"):
        averaging.attacked([NARROW], lambda _: (belief(0.0, 0.0).posterior, None))
    settings = {"starts": 2, "steps": 5, "draws": 4, "chains": 2}
    observed = from_data(settings={"widths": (4,)})
    with pytest.raises(BadInput, match=r"known only up to its factor .tv.: the weight of tv"):
        attack(observed, inference="laplace", prior=["tv", NARROW], settings=settings)  # whose weight would be nobody's


def drawn(k: int, client: Client, reference: torch.Tensor) -> Observation:
    """What a client shares of an image of one of the two priors; odd trials are of the wide one."""
    torch.manual_seed(k)
    x = priors.make((NARROW, WIDE)[k % 2], client, reference).draw(1)
    y = torch.randint(3, (1,))
    with torch.no_grad():
        u = client.update(x, y).materialise()
    return Observation(
        u + SIGMA * torch.randn_like(u), 1, y, client=client, public=reference,
        protection=Protection.parse(f"gaussian:sigma={SIGMA}"),
    )  # fmt: skip


@pytest.mark.slow
def test_weights_are_calibrated_where_priors_are_drawn_alike() -> None:
    """Of the trials whose wide prior has weight w, a share w is the wide one's: Σ (1[wide] − w) is 0 but for its
    standard deviation √Σ w (1 − w). Weights the wrong way round are rejected."""
    reference = 0.5 + 0.1 * torch.randn(60, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    client, wide = tiny(dtype="float32"), []
    for k in range(TRIALS):
        found = attack(
            drawn(k, client, reference), inference="laplace", prior=[NARROW, WIDE],
            settings={"starts": 1, "steps": 15, "chains": 2, "draws": 50},
        )  # fmt: skip
        wide.append(found.attrs["priors"][1]["weight"])
    w, truth = np.array(wide), np.arange(TRIALS) % 2

    def score(weights: np.ndarray) -> float:
        """Of the weights' logarithmic rule against what it is where they are right, in its standard deviations."""
        p = np.clip(weights, 1e-6, 1 - 1e-6)
        log = np.where(truth == 1, np.log(p), np.log1p(-p))
        mean, odds = p * np.log(p) + (1 - p) * np.log1p(-p), np.log(p / (1 - p))
        return float((log - mean).sum() / np.sqrt((p * (1 - p) * odds**2).sum()))

    assert w.std() > 0.1  # they say something
    assert abs((truth - w).sum()) < 3 * np.sqrt((w * (1 - w)).sum())
    assert abs(score(w)) < 3 and abs(score(1 - w)) > 5


@pytest.mark.slow
def test_the_command_line_averages_priors_and_says_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "attack",
        "--network.widths",
        "4",
        "--inference",
        "laplace",
        "--inference.draws",
        "50",
        "--inference.chains",
        "2",
    ]
    few = ["--inference.starts", "2", "--inference.steps", "20"]
    assert run([*words, *few, "--prior", "gaussian:floor=0.05,gmrf", "--out", str(tmp_path)]) == 0
    made = Posterior.load(tmp_path / "posterior.nc")
    assert [b["prior"] for b in made.attrs["priors"]] == ["gaussian:floor=0.05", "gmrf"]
    assert "prior gmrf" in capsys.readouterr().out
    for several, expected in (("gaussian,gaussian", "named twice"), ("gaussian,nope", "unknown prior 'nope'"),
                              ("gmrf,gaussian:rank=2", "no setting 'rank'"), (",", "unknown prior ''")):  # fmt: skip
        one_line([*words, *few, "--prior", several], capsys, expected)


def test_only_an_attack_averages_and_the_others_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--network.widths", "4", "--prior", "gaussian,gmrf", "--out", str(tmp_path)]
    one_line(["compare", "--count", "1", *words], capsys, "are averaged by `pplleak attack` alone")
    one_line(["risk", "--count", "1", *words], capsys, "are averaged by `pplleak attack` alone")
