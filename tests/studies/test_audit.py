"""The audit: every observation gets its share of a budget, nothing that failed looks like privacy, the page is safe."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import command as run
from conftest import rows as cells
from torch import nn

import pplleak as pl
from pplleak import data
from pplleak.client import networks
from pplleak.errors import BadInput
from pplleak.posterior import Posterior
from pplleak.studies.audit import audit, knowledge, report, utility, words
from pplleak.studies.audit import plan as plans
from pplleak.studies.audit.clock import Clock, OutOfTime, share

TINY = ["--map.steps", "5", "--map.starts", "2"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clients of digits: one gradient each, through a perceptron with ReLU."""
    folder = tmp_path_factory.mktemp("recorded")
    for k in range(2):
        torch.manual_seed(0)
        network = networks.get("mlp")((1, 8, 8), 10, widths=(8,), activation="relu")
        x, y = data.private("digits").batch(k, 1)
        with pl.record(network, folder / f"round-1-client-{k}.safetensors", source="mlp:widths=(8,),activation=relu"):
            nn.functional.cross_entropy(network(x), y).backward()
    return folder


def command(recorded: Path, out: Path, *more: object) -> int:
    tiny = [] if "quotient" in more else TINY
    return run("audit", recorded, "--truth", recorded / "private", "--out", out, *tiny, *more)


@pytest.mark.slow
def test_recorded_updates_are_audited_and_the_same_command_goes_on(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command(recorded, out, "--attacks", "quotient,map") == 0
    rows = cells(out / "audit.csv")
    assert [(r["name"], r["attack"]) for r in rows] == [
        (f"round-1-client-{k}", a) for a in ("quotient", "map") for k in (0, 1)
    ]
    exact = [r for r in rows if r["attack"] == "quotient"]
    assert all(float(r["psnr"]) > 60 and r["status"] == "done" for r in exact)  # the closed form
    assert all(r["labels"] == "read off the gradient" for r in exact)
    before = (out / "audit.csv").read_bytes()
    page = (out / "report.html").read_text()
    assert "2 of 2 give their data away." in page
    assert command(recorded, out, "--attacks", "quotient,map") == 0
    assert (out / "audit.csv").read_bytes() == before
    assert run("report", out) == 0
    assert (out / "report.html").read_text() == page
    assert command(recorded, out, "--attacks", "quotient,map", "--seed", "1") == 2  # another run's folder


@pytest.mark.slow
def test_a_budget_that_is_spent_says_so_and_is_no_privacy(recorded: Path, tmp_path: Path) -> None:
    assert command(recorded, tmp_path, "--attacks", "map", "--budget", "0.0001") == 0
    assert {r["status"] for r in cells(tmp_path / "audit.csv")} == {"no time"}
    page = (tmp_path / "report.html").read_text()
    assert "2 of 2 cannot be judged by this audit." in page and "That is no sign of privacy." in page
    assert command(recorded, tmp_path, "--attacks", "map", "--budget", "5") == 0  # what had no time is done now
    assert {r["status"] for r in cells(tmp_path / "audit.csv")} == {"done"}


@pytest.mark.slow
@pytest.mark.process
def test_an_audit_of_several_processes_and_of_shards_comes_to_the_same(recorded: Path, tmp_path: Path) -> None:
    for name, more in (("two", ["--workers", "2"]), ("shard", ["--shard", "1/2"])):
        assert command(recorded, tmp_path / name, "--attacks", "quotient", *more) == 0
    half = cells(tmp_path / "shard" / "audit.csv")
    assert {r["name"] for r in half} == {"round-1-client-0"}
    assert command(recorded, tmp_path / "shard", "--attacks", "quotient", "--shard", "2/2") == 0
    two, shard = ({r["name"]: r | {"seconds": ""} for r in cells(tmp_path / n / "audit.csv")} for n in ("two", "shard"))
    assert len(two) == 2 and two == shard
    assert command(recorded, tmp_path / "x", "--shard", "3/2") == 2


@pytest.mark.slow
def test_private_batches_are_shared_anew_behind_protections_and_the_page_says_what_they_hide(
    recorded: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--attacks", "quotient", "--defences", "gaussian:sigma=0.3", "topk:rate=0.5"]
    assert command(recorded, tmp_path, *argv) == 0
    rows = cells(tmp_path / "protections.csv")
    assert [(r["behind"], r["name"]) for r in rows] == [(d, f"round-1-client-{k}") for d in argv[3:] for k in (0, 1)]
    noise, top = rows[0], rows[2]
    assert float(noise["cosine"]) < float(top["cosine"]) < 1
    page = (tmp_path / "report.html").read_text()
    assert "shared anew behind" in page and page.count("<svg") == 1  # of two private examples no share is drawn
    monkeypatch.setattr(report, "FEWEST", 2)
    assert run("report", tmp_path) == 0 and (tmp_path / "report.html").read_text().count("<svg") == 2
    before = (tmp_path / "protections.csv").read_bytes()
    assert command(recorded, tmp_path, *argv) == 0 and (tmp_path / "protections.csv").read_bytes() == before
    assert run("audit", recorded, "--out", tmp_path / "x", "--defences", "sign") == 2
    assert "name their folder, --truth" in capsys.readouterr().err
    assert command(recorded, tmp_path / "x", "--defences", "nothing") == 2


@pytest.mark.slow
def test_the_recorded_network_is_trained_behind_protections_and_the_frontier_has_accuracy(
    recorded: Path, tmp_path: Path, capsys: Any
) -> None:
    argv = ["--attacks", "quotient", "--defences", "gaussian:sigma=1", "--train", "150"]
    assert command(recorded, tmp_path, *argv) == 0
    rows = cells(tmp_path / "trainings.csv")
    assert [r["protection"] for r in rows] == ["none", "gaussian:sigma=1"]
    plain, noise = (float(r["accuracy"]) for r in rows)
    assert noise < plain - 0.1  # so few steps tell noise from none
    page = (tmp_path / "report.html").read_text()
    assert "after 150 steps of training behind it" in page and f"{100 * noise:.1f} %" in page
    before = (tmp_path / "trainings.csv").read_bytes()
    (tmp_path / "training" / "none" / "step-150.safetensors").unlink()  # what stands in the table is not made again
    assert command(recorded, tmp_path, *argv) == 0 and (tmp_path / "trainings.csv").read_bytes() == before
    (tmp_path / "trainings.csv").unlink()  # killed before the rows were there: the trainings go on, to the same
    assert command(recorded, tmp_path, *argv) == 0 and (tmp_path / "trainings.csv").read_bytes() == before
    assert command(recorded, tmp_path / "x", "--attacks", "quotient", "--train", "30") == 2
    assert "name those" in capsys.readouterr().err


def test_a_training_on_images_of_another_kind_is_refused_before_any_work(recorded: Path) -> None:
    observed = pl.load(recorded / "round-1-client-0.safetensors", network="mlp:widths=(8,),activation=relu")
    images = data.Images(torch.rand(400, 1, 4, 4), torch.zeros(400).long(), ("a",))
    with pytest.raises(BadInput, match="a training takes data of one kind"):
        utility.require(observed, images, "tiny", [])
    utility.require(observed, data.public("digits"), "digits", ["gaussian:sigma=1"])


def test_every_worker_has_the_whole_budget_and_nothing_goes_on_after_its_end(tmp_path: Path) -> None:
    found = [plans.Item(str(k), tmp_path, None) for k in range(4)]
    plan = audit.plan(tmp_path, found, ["quotient", "map"], 60.0)
    jobs = plan.take(2)
    first = next(jobs)
    assert first.seconds == pytest.approx(120 / 12) and plan.running
    second = next(jobs)
    assert second.seconds == pytest.approx((120 - 10) / 11)
    plan.ended({"name": "0", "attack": "quotient", "seconds": 1.0})  # what it did not use goes to the others
    assert next(jobs).seconds == pytest.approx((120 - 1 - 10) / 10)
    alone = audit.plan(tmp_path, found[:1], ["map"], 60.0)
    assert next(alone.take(2)).seconds <= 60.0


@pytest.mark.slow
def test_an_attack_that_is_cut_short_keeps_what_it_has_and_is_not_believed(recorded: Path, tmp_path: Path) -> None:
    assert run("audit", recorded, "--truth", recorded / "private", "--out", tmp_path, "--attacks", "map",
               "--map.steps", "1000000", "--budget", "0.05") == 0  # fmt: skip
    rows = cells(tmp_path / "audit.csv")
    assert {r["status"] for r in rows} == {"cut short"} and {r["trusted"] for r in rows} == {"False"}
    kept = Posterior.load(tmp_path / "attacks" / "round-1-client-0.map.nc")
    assert any("share of the time" in r for r in kept.reasons) and np.isfinite(kept.mode).all()


def test_what_the_auditor_names_wrongly_is_one_line(recorded: Path, tmp_path: Path, capsys: Any) -> None:
    for words_, said in (
        ([tmp_path], "holds no observation"),
        ([recorded / "none.safetensors"], "no file"),
        ([recorded, "--truth", tmp_path], "holds no private batch"),
        ([recorded, "--budget", "0"], "positive number of minutes"),
        ([recorded, "--attacks", "map,map"], "each once"),
    ):
        assert run("audit", *words_, "--out", tmp_path / "out") == 2
        assert said in capsys.readouterr().err
    assert run("report", tmp_path) == 2
    assert "holds no result" in capsys.readouterr().err


def test_a_private_batch_of_another_client_is_refused(recorded: Path, tmp_path: Path) -> None:
    from pplleak.federation.capture import private

    private.write(tmp_path / "round-1-client-0.safetensors", torch.rand(2, 1, 8, 8), torch.zeros(2).long(), [[0, 1]])
    (item, *_) = plans.items([recorded], tmp_path)
    with pytest.raises(BadInput, match="it is of another one"):
        knowledge.prepared(item, pl.load(item.path), "known")


@pytest.mark.parametrize("shuffles", [True, False])
def test_an_order_that_the_server_cannot_know_is_unknown_to_the_attack(shuffles: bool, tmp_path: Path) -> None:
    x, y = data.private("digits").batch(0, 4)
    network = networks.get("mlp")((1, 8, 8), 10, widths=(4,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pl.record(network, tmp_path / "a.safetensors", source="mlp:widths=(4,)"):
        for order in ([0, 1, 2, 3], [2, 0, 3, 1] if shuffles else [0, 1, 2, 3]):
            for part in (order[:2], order[2:]):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[part]), y[part]).backward()
                optimizer.step()
    for truth in (None, tmp_path / "private"):
        (item,) = plans.items([tmp_path], truth)
        observed, _, assumed = knowledge.prepared(item, pl.load(item.path), "unknown")
        assert observed.client.local is not None and observed.protection.infers_sigma
        unknown = shuffles or truth is None  # who has the private batch sees that the order is one
        assert observed.client.local.shuffle == unknown and ("which the server does not know" in assumed) == unknown


def test_files_stand_in_the_order_that_people_count_in(tmp_path: Path) -> None:
    for k in (10, 2, 1):
        (tmp_path / f"round-{k}.safetensors").write_bytes(b"")
    assert [i.name for i in plans.items([tmp_path], None)] == ["round-1", "round-2", "round-10"]


def row(**more: Any) -> dict[str, Any]:
    said = dict.fromkeys(("why", "labels", "protection", "assumed"), "")
    plain = {"name": "a", "attack": "map", "status": "done", "seconds": 1.0, "examples": 2, **said}
    return dict.fromkeys(audit.COLUMNS) | plain | more


@pytest.mark.parametrize(
    ("found", "level"),
    [
        ([row(trusted=True, sd_ratio=0.3)], "away"),
        ([row(trusted=True, sd_ratio=0.6)], "partly"),
        ([row(trusted=True, sd_ratio=0.9)], "little"),
        ([row(trusted=False, sd_ratio=0.9)], "open"),  # says little, but failed: no privacy
        ([row(trusted=None)], "open"),
        ([row(trusted=False, gain=7.0)], "away"),  # wrong in its own eyes, and near the truth all the same
        ([row(trusted=False, gain=4.0)], "partly"),
        ([row(trusted=True, sd_ratio=0.9, gain=7.0)], "away"),
        ([row(trusted=True, sd_ratio=0.3), row(trusted=False, gain=0.0)], "away"),  # the worst counts
        ([row(status="no time", why="x")], "open"),
        ([row(status="does not apply", why="x"), row(trusted=True, sd_ratio=0.9)], "little"),
    ],
)
def test_a_finding_is_the_worst_that_any_attack_showed(found: list[dict[str, Any]], level: str) -> None:
    assert words.finding(found).level == level


def test_a_protection_behind_which_nothing_could_be_judged_is_not_said_to_protect() -> None:
    plain = {"name": "a", "examples": 1, "local": False, "best_psnr": None, "replay": None}
    plain |= {"trusted": False, "measured": False}
    sections = [
        plain | {"level": "away", "protected": "no protection"},
        plain | {"level": "open", "protected": "DP-SGD"},
    ]
    said = words.first_screen(sections)["protect"]
    assert said[1] == "Behind DP-SGD: 0 of 1 give something away, and 1 cannot be judged, which is no protection."
    assert "judged" not in said[0]


def test_a_protection_is_told_though_the_first_attack_was_declined_unseen() -> None:
    declined = row(attack="auto", status="does not apply", why="no sampler")
    made = row(protection="dpsgd:noise_multiplier=1.0,clip=1.0,lot=3", epsilon=2.0, labels="unknown: summed over")
    found = report.section(1, "a", [(declined, None), (made, None)], {}, {})
    assert found["protected"] == "DP-SGD (noise 1.0, clip 1.0)" and found["protection"].endswith(", ε = 2")
    assert "an ε of 2 by the last" in words.first_screen([found])["protect"][0]


def test_a_clock_ends_the_work_once_and_shares_are_of_what_is_left() -> None:
    clock = Clock(0.0)
    with pytest.raises(OutOfTime):
        list(clock("climbing", 3))
    assert clock.fired and list(clock("what is to be kept", 3)) == [0, 1, 2]
    assert share(100, 8, 80) == pytest.approx(10) and share(100, 8, 8) == pytest.approx(100)
    assert share(-1, 8, 8) == 0


class Seen(HTMLParser):
    """Tags of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)>"\'onload="&amp;\x1b[31m'


def test_names_from_files_cannot_inject(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(size=(2, 8, 1, 1, 4, 4)).astype(np.float32)
    attrs = {n: HOSTILE for n in ("model", "inference", "network", "observed", "protection", "loss", "labels_are")}
    attrs |= {"settings": {HOSTILE: HOSTILE}, "versions": {HOSTILE: HOSTILE}, "beliefs": {"prior": HOSTILE},
              "fit": {"fits": False, "doubts": [HOSTILE]}, "local": {HOSTILE: HOSTILE}}  # fmt: skip
    posterior = Posterior(x, np.zeros((2, 8, 1), int), x[0, 0], "sampler", reasons=(HOSTILE,), attrs=attrs,
                          truth=x[0, 1])  # fmt: skip
    folder = tmp_path / "<script>alert(3)<"
    folder.mkdir()
    posterior.save(folder / "posterior.nc")
    report.write(folder)
    page = (folder / "report.html").read_text()
    tags = Seen(page).tags
    assert not [t for t, _ in tags if t in ("script", "iframe", "object", "link", "base", "form")]
    assert not [a for _, of in tags for a in of if a.startswith("on")]
    assert page.count("&lt;script&gt;") >= 8 and "\x1b" not in page
    images = [a for t, a in tags if t == "img"]
    assert images and all(str(a["src"]).startswith("data:image/png;base64,") and a["alt"] for a in images)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)
    assert "default-src 'none'" in page
    assert Seen("<p onload='x'><script>").tags[1][0] == "script"  # the reader sees what it looks for


@pytest.mark.slow
def test_the_report_of_an_attack_has_its_pictures_and_what_is_assumed(tmp_path: Path) -> None:
    out = tmp_path / "attack"
    settings = ["--inference.steps", "5", "--inference.chains", "2", "--inference.draws", "8"]
    assert run("attack", "--inference", "laplace", *settings, "--out", out) == 0
    assert "pplleak attack --inference laplace" in (out / "report.html").read_text()  # how it was made
    assert run("report", out) == 0
    page = (out / "report.html").read_text()
    tags = Seen(page).tags
    assert len([t for t, _ in tags if t == "img"]) == 7  # truth, MAP, mean, sd, three draws
    ids = {a["id"] for _, a in tags if "id" in a}
    assert all(str(a["href"])[1:] in ids for t, a in tags if t == "a")
    for said in ("honest but curious", "gaussian:sigma=0.1", "SHA-256", "What would protect?", "prefers-color-scheme",
                 "@media print"):  # fmt: skip
        assert said in page
