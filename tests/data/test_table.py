"""Tables: the kind of each column, records and their encoding, and one line for what cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import one_line
from tables import HEADER, rows, written

from pplleak import data
from pplleak.data import table
from pplleak.data.columns import Columns
from pplleak.errors import BadInput
from pplleak.priors.records import fit_records

WORDS = ",".join  # cells to a line


def lines(header: str, *cells: str, count: int = 20) -> str:
    """A table whose last column is the label, its rows repeated."""
    return header + "\n" + "\n".join(f"{cells[k % len(cells)]},{'ab'[k % 2]}" for k in range(count)) + "\n"


def test_kinds_are_inferred_and_records_come_back_from_their_encoding(tmp_path: Path) -> None:
    text = HEADER.replace("sold", "same,sold") + rows(200).replace(",yes", ",x,yes").replace(",no", ",x,no")
    private, public = table.halves(written(tmp_path / "houses.csv", text))
    columns = private.columns
    assert columns is not None and (len(private), len(public)) == (40, 160)
    found = {c.name: (c.kind, c.states, c.width, c.missing) for c in columns.columns}
    assert found == {
        "colour": ("categorical", 3, 3, False), "rooms": ("grid", 4, 1, False), "price": ("number", 2, 2, True),
        "same": ("constant", 0, 0, False),
    }  # fmt: skip
    codes, numbers = columns.decode(private.x.double())
    assert torch.allclose(columns.encode(codes, numbers), private.x.double(), atol=1e-6)
    cells = columns.record(private.x)
    read = [line.split(",") for line in rows(200).splitlines()]
    spoken = {tuple(c.words(float(v)) for c, v in zip(columns.varying, row, strict=True)) for row in cells}
    known = {(c, r, "missing" if not p else f"{float(p):.4g}") for c, r, p, _ in read}
    assert spoken <= known and len(spoken) > 20
    assert Columns.from_json(columns.to_json()) == columns
    assert private.classes == ("no", "yes")


def test_means_are_those_of_the_public_rows_and_halves_never_meet(tmp_path: Path) -> None:
    private, public = table.halves(written(tmp_path / "houses.csv"))
    column = public.columns.columns[2]  # type: ignore[union-attr]
    there = public.columns.record(public.x)[:, 2]  # type: ignore[union-attr]
    there = there[~there.isnan()]
    assert column.mean == pytest.approx(float(there.mean()), abs=1e-5)
    assert float(public.x[public.x[:, -1] == 0][:, -2].std(correction=0)) == pytest.approx(1, abs=1e-3)
    own = {tuple(r.tolist()) for r in private.x if r[-1] == 0}
    assert not own & {tuple(r.tolist()) for r in public.x if r[-1] == 0}


def test_a_target_and_columns_to_drop_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "houses.csv")
    images = data.private(f"{path}:target=colour,drop=('price',)")
    assert images.classes == ("blue", "green", "red")
    assert [c.name for c in images.columns.columns] == ["rooms", "sold"]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_scikit_learns_tables_are_read(name: str) -> None:
    private, public = data.private(name), data.public(name)
    assert private.columns is not None and private.input_shape == public.input_shape
    assert (len(private) + len(public), len(private.columns.columns)) == {"wine": (178, 13)}.get(name, (569, 30))


def test_a_prior_of_records_is_a_law_and_knows_more_than_independent_columns(tmp_path: Path) -> None:
    private, public = table.halves(written(tmp_path / "houses.csv", HEADER + rows(600)))
    whole, apart = (fit_records(public.x, public.columns, tree=tree) for tree in (True, False))
    assert float(whole.log_prob(private.x).mean()) > float(apart.log_prob(private.x).mean()) + 0.1
    forest = whole.forest
    assert forest is not None
    states = torch.cartesian_prod(*(torch.arange(n) for n in public.columns.sizes))  # type: ignore[union-attr]
    assert float(forest.log_prob(states).exp().sum()) == pytest.approx(1, abs=1e-9)
    torch.manual_seed(0)
    drawn = forest.sample(torch.Size([20_000]))
    share = (drawn[:, None] == states).all(-1).double().mean(0)
    law = forest.log_prob(states).exp()
    away = ((share - law) / (law * (1 - law) / 20_000).sqrt()).abs()
    assert float(away[law > 1e-3].max()) < 5
    shifted = law.roll(1)
    assert float(((share - shifted) / (shifted * (1 - shifted) / 20_000).sqrt()).abs()[shifted > 1e-3].max()) > 5
    numbers = torch.linspace(-4, 4, 50, dtype=torch.float64)[:, None]
    assert torch.allclose(whole.numbers(whole.scores(numbers)), numbers, atol=1e-9)


BAD = {
    "mixed": (lines("size,y", "1", "2", "3", "4", "many"), "mixes numbers and words ('many' among numbers)"),
    "dates": (lines("joined,y", "2020-01-02", "2021-11-30"), "holds dates ('2020-01-02')"),
    "names": (lines("name,y", *(f"person {k}" for k in range(300)), count=300), "300 categories, more than 256"),
    "infinite": (lines("size,y", "1", "inf"), "infinity"),
    "wide": ("c," * 999_999 + "c\n1\n", "1000000 columns or more"),
    "short": (lines("size,y", "1", count=1), "has 1 rows, and a table needs 5"),
    "bare": ("1,2,3\n" * 9, "the first line of"),
    "same": (lines("size,y", "7"), "is the same in all rows"),
    "one column": ("y\n" + "a\nb\n" * 9, "has one column"),
    "unlabelled": ("size,y\n" + "1,\n2,a\n" * 9, "is missing in 9 rows"),
    "many labels": (
        "size,y\n" + "".join(f"{k % 3},{k}.5\n" for k in range(200)),
        "has 200 values, and a label 2 to 100",
    ),
    "empty": ("", "is no table of cells"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_is_refused_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = BAD[name]
    path = written(tmp_path / "bad.csv", text or "\n")
    one_line(["attack", "--data", str(path), "--out", str(tmp_path / "out")], capsys, expected)


def test_other_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "houses.csv")
    out = ["--out", str(tmp_path / "out")]
    one_line(["attack", "--data", str(path), "--data.target", "sodl", *out], capsys, "did you mean sold")
    one_line(["attack", "--data", str(path), "--index", "99", *out], capsys, "holds rows 0 to 23")
    one_line(["attack", "--data", str(tmp_path / "none.csv"), *out], capsys, "No such file")
    one_line(["compare", "--data", str(path), *out], capsys, "this command takes images so far")
    one_line(["attack", "--data", "adult", "--data-root", str(tmp_path), *out], capsys, "no Adult under")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    one_line(["attack", "--data", str(tmp_path / "broken.parquet"), *out], capsys, "arquet")
    (tmp_path / "bytes.csv").write_bytes(bytes(range(256)) * 20)
    one_line(["attack", "--data", str(tmp_path / "bytes.csv"), *out], capsys, "is no table of cells")


def test_what_a_file_says_reaches_the_terminal_as_it_is_written(tmp_path: Path) -> None:
    """No markup of a terminal and no control letters."""
    cell = "<script>alert(1)</script>[red]"
    text = HEADER + rows(60).replace("green", cell)
    private, _ = table.halves(written(tmp_path / "html.csv", text))
    assert private.columns is not None
    assert cell in private.columns.columns[0].values
    from rich.console import Console

    from pplleak.studies.attack import records

    console = Console(width=200, record=True)
    console.print(records.kinds(private.columns))
    assert "<script>alert(1)</s" in console.export_text()
    with pytest.raises(BadInput, match=r"mixes numbers and words \('\\x1b"):
        table.halves(written(tmp_path / "escape.csv", lines("size,y", "1", "2", "3", "\x1b[31m")))


def test_a_category_that_only_a_private_row_has_is_a_possible_one(tmp_path: Path) -> None:
    """It is one of the file's, so that the adversary may find it, and gives it little beforehand: never nothing."""
    hidden = int(table._drawn(60).nonzero()[0][0])
    text = rows(60).splitlines()
    text[hidden] = "violet,1,12,yes"
    private, public = table.halves(written(tmp_path / "rare.csv", HEADER + "\n".join(text) + "\n"))
    assert private.columns is not None and "violet" in private.columns.columns[0].values
    code = private.columns.columns[0].values.index("violet")
    assert not public.x[:, code].any() and private.x[:, code].sum() == 1
    forest = fit_records(public.x, private.columns).forest
    assert forest is not None
    assert 0 < float(forest.marginals()[0][code]) < 0.05
    assert float(forest.marginals()[0].sum()) == pytest.approx(1)
    drawn = forest.sample(torch.Size([20_000]))
    for f, law in forest.marginals().items():
        share = torch.bincount(drawn[:, f], minlength=len(law)) / 20_000
        assert float(((share - law) / (law * (1 - law) / 20_000).sqrt().clamp(min=1e-4)).abs().max()) < 5
