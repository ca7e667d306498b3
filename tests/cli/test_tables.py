"""A table from the command line: its cells on the terminal, in a file and a picture; what knows no tables says so."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import tables
from command_line import one_line, run, tiny


@pytest.mark.slow
def test_an_attack_on_a_table_tells_its_cells_and_escapes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tables.rows().replace("red", "<b>red</b>").replace("blue", "[/x]")
    file, out = tables.written(tmp_path / "houses.csv", tables.HEADER + rows), tmp_path / "attack"
    words = ["--data", str(file), "--sigma", "0.05", "--network.widths", "6", "--inference", "gibbs", *tiny("gibbs")]
    assert run(["attack", *words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "what the gradient says of each cell" in said and "cells that are right" in said and "PSNR" not in said
    with (out / "cells.csv").open() as kept:
        cells = list(csv.DictReader(kept))
    assert [c["column"] for c in cells] == ["colour", "rooms", "price"]
    assert cells[0]["truth"] in ("<b>red</b>", "green", "[/x]")
    assert all(0 <= float(c["probability"]) <= 1 for c in cells)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["cell_accuracy"] == pytest.approx(sum(c["right"] == "True" for c in cells) / 3)
    assert (out / "attack.png").stat().st_size > 1000
    page = (out / "report.html").read_text()
    assert "<b>" not in page and ("&lt;b&gt;red" in page or "red" not in cells[0]["truth"] + cells[0]["estimate"])
    assert all(heading in page for heading in ("The records", "How much of a record is known", "be believed?"))
    (out / "report.html").unlink()
    assert run(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page


@pytest.mark.slow
def test_a_table_is_attacked_behind_a_transformer_of_its_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tables.written(tmp_path / "houses.csv"), tmp_path / "attack"
    words = ["--data", str(file), "--network", "ft_transformer", "--network.width", "8", "--network.depth", "1"]
    words += ["--network.heads", "2", "--sigma", "0.05"]
    assert run(["attack", *words, "--inference", "gibbs", *tiny("gibbs"), "--out", str(out)]) == 0
    capsys.readouterr()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["path"] == "lazy" and 0 <= summary["cell_accuracy"] <= 1
    assert summary["network"] == "ft_transformer"


@pytest.mark.slow
def test_a_network_is_trained_on_a_table_and_attacked_as_it_then_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, trained = tables.written(tmp_path / "houses.csv"), tmp_path / "train"
    told = ["--data", str(file), "--data.target", "rooms", "--network.widths", "6"]
    few = ["--clients", "3", "--batch-size", "8", "--steps", "20", "--checkpoints", "0", "20"]
    assert run(["train", *told, *few, "--lr", "0.5", "--out", str(trained)]) == 0
    with (trained / "log.csv").open() as kept:
        before, after = csv.DictReader(kept)
    assert float(after["loss"]) < float(before["loss"])  # the price tells the rooms
    attacked = ["attack", *told, "--sigma", "0.05", "--inference", "gibbs", *tiny("gibbs")]
    out = tmp_path / "attack"
    assert run([*attacked, "--checkpoint", str(trained / "step-20.safetensors"), "--out", str(out)]) == 0
    with (out / "cells.csv").open() as kept:
        assert [c["column"] for c in csv.DictReader(kept)] == ["colour", "price", "sold"]
    capsys.readouterr()
    other = ["train", "--data", str(file), "--data.target", "sold", "--network.widths", "6", *few, "--lr", "0.5"]
    one_line([*other, "--out", str(trained)], capsys, "sold")  # another target is another training


@pytest.mark.parametrize("command", ["compare", "risk", "calibrate", "bits", "defend"])
def test_commands_that_know_no_tables_say_so(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tables.written(tmp_path / "houses.csv")
    one_line([command, "--data", str(file), "--out", str(tmp_path / "out")], capsys, "table")
