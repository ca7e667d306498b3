"""A table from the command line: its cells on the terminal, in a file and a picture; what knows no tables says so."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import tables
from command_line import one_line, run, tiny


@pytest.mark.slow
def test_an_attack_on_a_table_tells_its_cells_and_no_page_is_made_of_them(
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
    assert (out / "attack.png").stat().st_size > 1000 and not (out / "report.html").exists()
    one_line(["report", str(out)], capsys, "is of a table")


@pytest.mark.parametrize("command", ["compare", "risk", "calibrate", "bits", "defend", "train"])
def test_commands_that_know_no_tables_say_so(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tables.written(tmp_path / "houses.csv")
    one_line([command, "--data", str(file), "--out", str(tmp_path / "out")], capsys, "table")
