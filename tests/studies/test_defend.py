"""The sweep over defences: its jobs, its averages, its files, and every mistake in one line."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import command as run
from scenes import from_data

from pplleak import channels, programs
from pplleak.errors import BadInput
from pplleak.federation import defences, rounds
from pplleak.federation.protection import QUIET, Protection
from pplleak.posterior import metrics
from pplleak.settings import Named
from pplleak.studies.defend import candidates, defend
from pplleak.studies.defend import report as defend_report
from pplleak.studies.defend.defend import Job, Sweep

TINY = [
    "defend", "--network", "mlp", "--network.widths", "8", "--steps", "0", "3", "--clients", "3", "--count", "1",
    "--inference.steps", "3", "--inference.starts", "2", "--classic-steps", "3",
]  # fmt: skip
TWO = ["--defences", "none", "gaussian:sigma=0.01"]


@pytest.fixture()
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path: str = "defend/defences.csv") -> list[dict[str, str]]:
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


# -- who attacks -----------------------------------------------------------------------------------------------------


def test_every_channel_s_adversaries_are_models_that_there_are() -> None:
    for name in (*channels.names(), *defences.names()):
        row = defend.adversaries(name)
        assert row.source
        assert row.own in programs.names("models")
        assert callable(programs.load("models", row.knowing))
        assert Protection.parse(name).name == name


def test_a_defence_whose_file_names_no_adversary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(defences.load("mix"), "ATTACKS")
    with pytest.raises(BadInput, match="no adversary is known to attack the defence 'mix'"):
        defend.adversaries("mix+laplace")


def test_a_batch_and_a_channel_are_told_in_one_line() -> None:
    said = Protection.parse("dpsgd:noise_multiplier=2,clip=0.5")
    assert said.filled().settings == {"noise_multiplier": 2, "clip": 0.5, "lot": 0}
    assert str(said) == "dpsgd:noise_multiplier=2,clip=0.5"
    assert Protection.parse("topk:rate=0.5").filled().settings == {"rate": 0.5, "sigma": QUIET}
    assert Protection.parse("masked:noise=laplace").settings["noise"] == "laplace"
    assert Protection.parse("gaussian").filled().settings == {"sigma": 0.1}


@pytest.mark.slow
def test_the_knowing_adversary_knows_and_the_others_do_not(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(Path("s"), network=Named("mlp", {"widths": (8,)}), classic_steps=2,
                  inference_settings={"steps": 2, "starts": 1})  # fmt: skip
    dpsgd = Protection.parse("dpsgd:noise_multiplier=0.3,clip=0.5")
    bare = Protection.parse("none")
    believed: dict[tuple[str, str], dict[str, Any]] = {}
    attack = defend.attack

    def spy(*args: Any, **kwargs: Any) -> Any:
        found = attack(*args, **kwargs)
        believed[found.attrs["protection"].partition(":")[0], args[1]] = found.attrs["beliefs"]
        return found

    monkeypatch.setattr(defend, "attack", spy)
    for protected in (dpsgd, bare):
        assert defend.train(sweep, protected, [0])
        for row in defend.run(sweep, Job(protected, 0, 4)):
            assert row["rms"] == pytest.approx(10 ** (-row["psnr"] / 20))
    assert believed["dpsgd", "optimal"]["channel"] == "dpsgd:noise_multiplier=0.3,clip=0.5,lot=0"
    assert "clip" not in believed["dpsgd", "dlg"]
    assert 1e-5 < believed["gaussian", "optimal"]["sigma"] < 1e-2  # nothing is hidden: a peak that can be climbed


def test_the_knowing_adversary_keeps_the_image_that_its_own_posterior_prefers() -> None:
    target = from_data("digits", network="mlp", settings={"widths": (16,)}, sigma=0.01)
    assert target.truth is not None and target.public is not None
    images = {"dlg": target.truth.numpy(), "optimal": target.public[:1].numpy(), "guess": 0 * target.truth.numpy()}
    assert candidates.best(target, "optimal", {}, images, "guess")[0] == "dlg"
    del images["dlg"]
    whose, x = candidates.best(target, "optimal", {"sigma": 1e6}, images, "guess")
    assert whose == "optimal" and x is images["optimal"]  # only the prior speaks


def test_the_knowing_adversary_climbs_on_from_what_others_found() -> None:
    target = from_data("digits", network="mlp", settings={"widths": (16,)}, sigma=0.01)
    assert target.truth is not None and target.public is not None
    truth = target.truth.numpy()
    rough = truth + 0.1 * np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    images = {"dlg": rough, "optimal": target.public[:1].numpy()}
    whose, x = candidates.best(target, "optimal", {}, images, "optimal", steps=100)
    assert whose == "dlg" and metrics.psnr(x, truth) > metrics.psnr(rough, truth) + 3


def test_an_image_without_a_density_is_left_to_the_one_that_is_named() -> None:
    target = from_data("digits", network="mlp", settings={"widths": (16,)}, defence="precode",
                               defence_settings={"size": 4}, sigma=0.01)  # fmt: skip
    assert target.truth is not None
    images = {"dlg": target.truth.numpy(), "precode": 0 * target.truth.numpy()}
    assert candidates.best(target, "precode", {}, images, "precode")[0] == "precode"


def test_what_the_first_layer_gives_away_is_the_image_where_the_gradient_was_taken_of_it() -> None:
    plain = from_data("digits", network="mlp", settings={"widths": (16,)}, sigma=0.01)
    made = from_data("digits", network="mlp", settings={"widths": (16,)}, sigma=0.01, defence="mixup")
    assert candidates.holds(plain, "optimal") and not candidates.holds(made, "mixup")


@pytest.mark.slow
def test_what_the_first_layer_gives_away_is_read_behind_a_defence_and_through_training(workshop: Path) -> None:
    kept = {"classic_steps": 2, "inference_settings": {"steps": 2, "starts": 1}}
    for network, protected in (("mlp", "soteria"), ("mlp", "precode:size=4"), ("convnet", "soteria")):
        named = Named(network, {"widths": (16,)} if network == "mlp" else {"channels": (2, 2), "width": 4})
        defence = Protection.parse(protected)
        sweep = defend.checked(Sweep(Path(network), network=named, **kept), [defence])
        assert defend.train(sweep, defence, [0, 3])
        found = {r["model"]: r for r in defend.run(sweep, Job(defence, 3, 4))}
        assert set(found) == {key[3] for key in defend.keys(sweep, Job(defence, 3, 4))}
        if network == "convnet":
            assert "quotient" not in found  # its first layer shares weights over the image
            continue
        assert found["quotient"]["psnr"] > 60 > found["dlg"]["psnr"]
        assert found[defence.name]["found_by"] == "quotient" and found[defence.name]["psnr"] > 60


# -- averages --------------------------------------------------------------------------------------------------------


def image(defence: str, model: str, index: int, psnr: float, **more: Any) -> dict[str, Any]:
    return {
        "defence": defence, "strength": "", "step": 0, "model": model, "index": index, "inference": "map",
        "found_by": model,
        "psnr": psnr, "ssim": 0.5, "rms": 10 ** (-psnr / 20), "psnr_blind": 10.0, "bits": None, "converged": True,
        "cpu_seconds": 1.0, **more,
    }  # fmt: skip


def test_averages_gaps_and_gains_are_paired_by_image(tmp_path: Path) -> None:
    bare = [image("none", "optimal", k, p) for k, p in enumerate([20.0, 30.0, 40.0])]
    mine = [image("sign", "optimal", k, p) for k, p in enumerate([19.0, 28.0, 37.0])]
    classic = [image("sign", "dlg", k, p) for k, p in enumerate([12.0, 12.0, 12.0])]
    better = [image("sign", "inverting_gradients", k, p) for k, p in enumerate([10.0, 16.0, 16.0])]
    cells = defend.cells(Sweep(tmp_path), [*bare, *mine, *classic, *better], delta=0.05)
    found = {c["attack"]: c for c in cells if c["defence"] == "sign"}
    assert found["own"]["model"] == "dlg" and found["classic"]["model"] == "inverting_gradients"
    knowing = found["knowing"]
    assert knowing["psnr_mean"] == 28 and knowing["psnr_se"] == pytest.approx(9 / math.sqrt(3))
    assert knowing["gap_mean"] == -2 and knowing["gap_se"] == pytest.approx(1 / math.sqrt(3))
    gain = np.array([9.0, 12.0, 21.0])
    assert knowing["gain_mean"] == 14 and knowing["gain_se"] == pytest.approx(gain.std(ddof=1) / math.sqrt(3))
    assert knowing["recovered"] == pytest.approx(2 / 3) and knowing["bits"] is None
    assert knowing["accuracy"] is None and set(knowing) == set(defend.COLUMNS)
    assert found["own"]["gain_mean"] == -2 and found["own"]["recovered"] == 0


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_writes_its_table_and_goes_on_with_more(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*TINY, *TWO) == 0
    assert "PSNR of the reconstruction" in capsys.readouterr().out
    found = rows()
    assert len(found) == 2 * 2 * 4
    assert [c for c in found[0]] == list(defend.COLUMNS)
    assert {(r["defence"], r["strength"], r["step"]) for r in found} == {
        (d, s, t) for d, s in (("none", ""), ("gaussian", "sigma=0.01")) for t in ("0", "3")
    }
    logged = rounds.log(Path("defend/training/gaussian-sigma-0.01"))
    assert float(found[-1]["accuracy"]) == pytest.approx(logged[-1]["accuracy"], abs=1e-5)
    assert Path("defend/defences.png").stat().st_size > 1000
    done, attack = [], defend.attack

    def counted(*args: Any, **kwargs: Any) -> Any:
        done.append(args[1])
        return attack(*args, **kwargs)

    monkeypatch.setattr(defend, "attack", counted)
    assert run(*TINY, *TWO, "--count", "2") == 0
    assert len(done) == 2 * 2 * 3  # those of the second image alone (and its quotients)
    assert {r["images"] for r in rows()} == {"2"}


@pytest.mark.slow
def test_a_sweep_attacks_batches_of_fedavg_clients(workshop: Path) -> None:
    fedavg = ["--batch-size", "2", "--local-lr", "0.1", "--local-steps", "2", "--local-batch-size", "1"]
    assert run(*TINY, *fedavg, "--defences", "none", "topk:rate=0.5", "--count", "2", "--steps", "2") == 0
    assert {r["batch_size"] for r in rows()} == {"2"} and {r["images"] for r in rows()} == {"2"}
    assert {r["index"] for r in rows("defend/defences_images.csv")} == {"0", "2"}


@pytest.mark.slow
def test_ctrl_c_keeps_the_attacks_that_are_done(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attack, left = defend.attack, [4]

    def impatient(*args: Any, **kwargs: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return attack(*args, **kwargs)

    monkeypatch.setattr(defend, "attack", impatient)
    assert run(*TINY, *TWO) == 130
    assert "4 of 16 attacks kept" in " ".join(capsys.readouterr().out.split())
    before = rows("defend/defences_images.csv")
    left[0] = 10
    assert run(*TINY, *TWO) == 0
    after = rows("defend/defences_images.csv")
    assert len(after) == 16 and after[:4] == before


MISTAKES = {
    "unknown defence": (["--defences", "soterai"], "unknown defence 'soterai'"),
    "unknown setting": (["--defences", "topk:rat=0.5"], "no setting 'rat'"),
    "impossible setting": (["--defences", "topk:rate=2"], "rate must be at least 0"),
    "a setting of none": (["--defences", "none:sigma=1"], "none stands alone"),
    "a setting without a value": (["--defences", "topk:rate"], "must read NAME:SETTING=VALUE"),
    "the same defence twice": (["--defences", "sign", "sign"], "names one twice"),
    "steps out of order": (["--steps", "10", "0"], "steps must ascend"),
    "no images": (["--count", "0"], "count must be a positive"),
    "more images than there are": (["--index", "290", "--count", "20"], "out of range"),
    "no workers": (["--workers", "0"], "workers must be a positive"),
    "DP-SGD of local training": (["--defences", "dpsgd", "--local-lr", "1"], "let clients share gradients"),
    "unknown inference": (["--inference", "mpa"], "did you mean map"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    mistake: str, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = MISTAKES[mistake]
    base = TINY[: TINY.index("--inference.steps")] if "--inference" in words else TINY
    assert run(*base, *words) == 2
    shown = capsys.readouterr().err
    assert expected in shown and shown.startswith("pplleak: ") and shown.count("\n") == 1
    assert not list(Path("defend").glob("training/*"))


@pytest.mark.slow
def test_a_folder_of_another_sweep_is_refused(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*TINY, "--defences", "none", "--steps", "0") == 0
    capsys.readouterr()
    assert run(*TINY, "--defences", "none", "--steps", "0", "--classic-steps", "4") == 2
    assert "holds a sweep with classic_steps = 3" in capsys.readouterr().err
    Path("defend/defend.json").unlink()  # the checkpoints themselves are of another network
    assert run(*TINY, "--defences", "none", "--steps", "0", "--network.widths", "9") == 2
    assert "network_settings" in capsys.readouterr().err


def test_rows_that_are_read_again_are_those_that_were_written(tmp_path: Path) -> None:
    made = [
        image("sign", "dlg", k, 1 / 3 + k, ssim=None if k else 1e-17 / 3, rms=1 / 7, cpu_seconds=0.1) for k in (0, 1)
    ]
    table = defend.images(tmp_path / "x.csv")
    assert table.add(made) == made == table.read()
    cells = [defend.cells(Sweep(tmp_path), rows, delta=0.1) for rows in (made, table.read())]
    assert cells[0] == cells[1]


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("defence,step\nnone,one\n")
    with pytest.raises(BadInput, match="another folder"):
        defend.images(tmp_path / "x.csv").read()


def test_the_picture_has_a_panel_for_each_defence_and_one_for_all() -> None:
    cells = defend.cells(Sweep(Path("nowhere")), [image(d, m, 0, 20.0) for d in ("none", "sign")
                                                   for m in defend.models(d)], delta=0.1)  # fmt: skip
    figure = defend_report.picture(cells)
    titles = [a.get_title(loc="left").splitlines()[0] for a in figure.axes if a.get_title(loc="left")]
    assert titles[:2] == ["1. none", "2. sign"] and len(titles) == 3


def test_the_picture_draws_no_higher_than_its_ceiling() -> None:
    made = [image("none", m, 0, p) for m, p in (("dlg", 20.0), ("quotient", 113.0), ("optimal", 30.0))]
    figure = defend_report.picture(defend.cells(Sweep(Path("nowhere")), made, delta=0.1))
    drawn = [float(y) for a in figure.axes for line in a.get_lines() for y in np.ravel(line.get_ydata())]
    assert max(drawn) == defend_report.CEILING and "60 dB stand" in figure.texts[1].get_text()
