"""The table of models: every file of the folder has every column, and a file that has not is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pplleak import cli, programs
from pplleak.cli import _model_table as model_table
from pplleak.errors import BadInput

DLG = programs.locate("models", "dlg")


@pytest.mark.parametrize("name", programs.names("models"))
def test_every_model_file_yields_every_column(name: str) -> None:
    row = model_table.row(programs.locate("models", name))
    assert row.name == name
    assert "x" in row.prior and not any(part.startswith(("y ", "g")) for part in row.prior.split("; "))
    assert row.likelihood.startswith("g") and "| x, y ~" in row.likelihood and "update_size" not in row.likelihood
    assert len(row.source) > 3 and "steps" in row.optimiser


def test_a_row_is_what_the_file_says() -> None:
    row = model_table.row(DLG)
    assert (row.prior, row.likelihood) == ("x ~ Uniform(0, 1)", "g | x, y ~ Normal(u(x, y), sigma² I)")
    assert row.source == "Zhu et al. 2019 (Deep Leakage from Gradients), eq. 4"
    assert row.optimiser.startswith("lbfgs, ") and "steps 1200" in row.optimiser
    assert "steps 1000" in model_table.row(DLG.with_name("optimal.py")).optimiser


def test_a_models_own_optimiser_is_shown(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(DLG.read_text() + '\n\nMAP = {"optimizer": "lbfgs", "steps": 77}\n')
    assert model_table.row(mine).optimiser.startswith("lbfgs, ") and "steps 77" in model_table.row(mine).optimiser


@pytest.mark.parametrize("lost", ["x ~", "g | x, y ~", "Source:"])
def test_a_file_without_a_column_is_named(lost: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("\n".join(line for line in DLG.read_text().splitlines() if not line.startswith(lost)))
    with pytest.raises(BadInput, match=r"mine.py: its docstring has no line"):
        model_table.row(mine)


def test_attacks_that_are_inferences_are_listed_with_their_papers() -> None:
    lines = model_table.inferences().splitlines()
    assert all(line.replace("\\|", "").count("|") == 4 for line in lines)
    papers = {"spear": "NeurIPS 2024", "imprint": "ICLR 2022", "quotient": "Phong"}
    assert all(any(f"`{name}`" in line and paper in line for line in lines) for name, paper in papers.items())


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["ls", "--form", "markdown"])
    assert not stopped.value.code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(programs.names("models"))
    assert all(line.replace("\\|", "").count("|") == len(model_table.COLUMNS) + 1 for line in lines)
