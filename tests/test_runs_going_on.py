"""A run goes on only with what it was begun with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from command_line import one_line, run

from pplleak import programs, runs
from pplleak.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Run:
    model: str
    inference: str = "map,hmc"
    network: str = "mlp"
    checkpoint: Path | None = None
    widths: tuple[int, ...] = (4, 8)
    count: int = 3


@pytest.mark.parametrize(
    ("setting", "value"),
    [("model", "{}"), ("inference", "map,{}"), ("network", "{}:build"), ("checkpoint", "{}"), ("network", "{}")],
)
def test_a_file_of_the_users_that_changes_is_another_run(setting: str, value: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("a = 1\n")
    word: str | Path = value.format(mine)
    args = dataclasses.replace(Run("gaussian"), **{setting: Path(word) if setting == "checkpoint" else word})
    begun = runs.settings(args, leaving=("count",))
    kept = tmp_path / "out" / "run.json"
    runs.settle(kept, begun)
    runs.settle(kept, runs.settings(dataclasses.replace(args, count=9), leaving=("count",)))
    mine.write_text("a = 2\n")
    with pytest.raises(BadInput, match=r"run\.json holds a sweep with files = .*mine\.py.*another folder"):
        runs.settle(kept, runs.settings(args, leaving=("count",)), "a sweep")
    assert json.loads(kept.read_text()) == begun  # what was there stays


def test_settings_are_said_as_json_gives_them_back() -> None:
    assert runs.settings(Run("gaussian"), leaving=("count", "checkpoint")) == {
        "model": "gaussian", "inference": "map,hmc", "network": "mlp", "widths": [4, 8],
    }  # fmt: skip


def test_settings_within_settings_name_files_too(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    found = runs.settings({"model_settings": {"weights": [str(tmp_path / "w.safetensors")]}, "nul": "a\0b"})
    assert list(found["files"]) == [str(tmp_path / "w.safetensors")]


@pytest.mark.parametrize("text", ["", "[1, 2]", '"gaussian"', "7", "null", "{", "\x00"])
def test_a_file_that_holds_no_settings_is_refused_in_a_line_and_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"cannot go on from .*another folder"):
        runs.settle(path, {"model": "gaussian"})
    assert path.read_text() == text


def test_settings_that_only_one_run_has_differ_from_none() -> None:
    runs.require_same({"a": 1, "b": None}, {"a": 1}, Path("out"))
    with pytest.raises(BadInput, match="out holds a run with b = 2, this one has None"):
        runs.require_same({"a": 1, "b": 2}, {"a": 1}, Path("out"))


def test_settings_that_no_number_tells_are_the_same_when_they_are_read_back(tmp_path: Path) -> None:
    for _ in range(2):
        runs.settle(tmp_path / "run.json", runs.settings({"a": float("inf"), "b": float("nan")}))
    with pytest.raises(BadInput, match="a = Infinity, this one has -Infinity"):
        runs.settle(tmp_path / "run.json", runs.settings({"a": -float("inf"), "b": float("nan")}))


def test_settings_stand_beside_results_and_rows_without_them_are_refused(tmp_path: Path) -> None:
    path, rows = tmp_path / "risk.json", tmp_path / "rows.csv"
    runs.settle(path, {"a": 1}, under="settings", rows=rows)
    runs.json(path, {"settings": {"a": 1}, "curves": [1, 2]})
    runs.settle(path, {"a": 1}, under="settings", rows=rows)
    with pytest.raises(BadInput, match=f"{tmp_path} holds a run with a = 1, this one has 2"):
        runs.settle(path, {"a": 2}, under="settings", rows=rows)
    path.unlink()
    rows.write_text("index\n1\n")
    with pytest.raises(BadInput, match=r"rows\.csv does not say what its rows were made with, risk\.json is missing"):
        runs.settle(path, {"a": 1}, under="settings", rows=rows)
    assert not path.exists()


LIGHT = ["--network.widths", "4", "--inference", "laplace"]
FEW = ["--inference.starts", "1", "--inference.steps", "3", "--inference.chains", "2", "--inference.draws", "60"]
COMMANDS = {
    "risk": (["--inference", "map", "--map.starts", "1", "--map.steps", "2", "--count"], "1", "2"),
    "calibrate": ([*LIGHT, *FEW, "--draws"], "3", "4"),
    "bits": ([*LIGHT, *FEW, "--count"], "1", "2"),
    "compare": (["--inference", "map", "--map.starts", "1", "--map.steps", "2", "--count"], "1", "2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_not_go_on_with_a_model_file_that_has_changed(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, few, more = COMMANDS[command]
    model = tmp_path / "mine.py"
    model.write_text(programs.locate("models", "optimal").read_text())
    argv = [command, "--model", str(model), "--out", str(tmp_path / "o"), *words]
    assert run([*argv, few]) == 0
    model.write_text(model.read_text() + "\n# another\n")
    capsys.readouterr()
    one_line([*argv, more], capsys, "holds a run with files")


@pytest.mark.slow
def test_sweeps_and_trainings_do_not_go_on_with_a_network_file_that_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from pplleak.client.networks.linear import linear\n")
    train = ["train", "--network", "mine.py:linear", "--steps", "1", "--batch-size", "4", "--clients", "2",
             "--participants", "1"]  # fmt: skip
    defend = ["defend", "--network", "mine.py:linear", "--steps", "0", "--count", "1", "--defences", "none",
              "--classic-steps", "1", "--inference.steps", "1", "--inference.starts", "1"]  # fmt: skip
    for argv in (train, defend):
        assert run(argv) == 0
    capsys.readouterr()
    Path("mine.py").write_text("from pplleak.client.networks.linear import linear  # another\n")
    one_line(train, capsys, "holds the checkpoints of a training with files")
    one_line(defend, capsys, "holds a sweep with files")
