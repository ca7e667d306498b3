"""Audits of tables and of texts: cells and tokens are counted, what luck does is no leak, the page escapes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
import texts
import torch
from command_line import command as run
from command_line import one_line, tiny
from conftest import rows as read
from torch import nn

import pplleak as pl
from pplleak import data
from pplleak.client import networks
from pplleak.errors import BadInput
from pplleak.federation.capture import private
from pplleak.posterior import Posterior
from pplleak.studies.audit import audit, counted, knowledge, words
from pplleak.studies.audit import plan as plans

HOSTILE = "<script>alert(1)</script>"
BERT = ["--network", "bert", "--network.width", "32", "--network.heads", "2"]


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose cells and columns are hostile, and a folder of two observations of its private rows."""
    folder = tmp_path_factory.mktemp("houses")
    header = tables.HEADER.replace("rooms", f'"{HOSTILE}"')
    file = tables.written(folder / "houses.csv", header + tables.rows().replace("red", f"{HOSTILE}[red]"))
    for name, index, batch in (("a", 0, 1), ("b", 3, 2)):
        shared = ["--sigma", "0.01", "--index", index, "--batch-size", batch, "--network.widths", "8"]
        kept = ["--out", folder / "seen" / f"{name}.safetensors", "--private", folder / "seen" / "private"]
        assert run("observe", "--data", file, *shared, *kept) == 0
    return file


@pytest.mark.slow
def test_an_audit_of_a_table_counts_cells_and_escapes_them(
    houses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, out = houses.parent / "seen", tmp_path / "out"
    words_ = ["--data", houses, "--attacks", "quotient,gibbs", *tiny("gibbs", "gibbs"), "--out", out]
    assert run("audit", seen, "--truth", seen / "private", *words_) == 0
    said = " ".join(capsys.readouterr().out.split())
    rows = {(r["name"], r["attack"]): r for r in read(out / "audit.csv")}
    exact = rows["a", "quotient"]
    assert (exact["unit"], exact["units"], exact["right"], exact["whole"]) == ("cells", "3", "3", "1")
    columns = data.public(str(houses)).columns
    assert columns is not None
    for (name, attack), row in rows.items():  # counted by hand, from what was kept
        if row["status"] != "done":
            continue
        found = Posterior.load(audit.place(out, name, attack))
        assert found.truth is not None and row["psnr"] == "" and row["units"] == str(3 * len(found.truth))
        true = columns.record(torch.as_tensor(found.truth)).numpy()
        guess = np.array(found.attrs["guess"], float)
        near = [np.isclose(g, t, rtol=0, atol=c.tolerance * 1.001, equal_nan=True)
                for t in true for g, t, c in zip(guess, t, columns.varying, strict=True)]  # fmt: skip
        assert row["guess_right"] == str(sum(map(bool, near)))
    assert ("b", "gibbs") in rows and 0 < float(rows["b", "gibbs"]["claimed"]) <= 1
    assert "are right" in said and "a guess without the update has" in said and "PSNR" not in said
    page = (out / "report.html").read_text()
    assert HOSTILE not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("The records, by") == 2 and 'class="bar"' in page and "Can that be believed?" in page
    assert "dB" not in page and "public images" not in page
    assert run("report", out) == 0 and (out / "report.html").read_text() == page


@pytest.mark.slow
def test_records_are_shared_anew_behind_protections_and_their_cells_are_counted(
    houses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, out, defences = houses.parent / "seen", tmp_path / "out", ("gaussian:sigma=0.0001", "gaussian:sigma=30")
    told = ["--data", houses, "--attacks", "quotient,gibbs", "--defences", *defences, *tiny("gibbs", "gibbs")]
    told += ["--out", out]
    assert run("audit", seen, "--truth", seen / "private", *told) == 0
    capsys.readouterr()
    rows = read(out / "protections.csv")
    asked = {(b, n, a) for b in defences for n in "ab" for a in ("quotient", "gibbs")}
    assert {(r["behind"], r["name"], r["attack"]) for r in rows} == asked
    gone = {}
    for behind in defences:
        best = {n: max((r for r in rows if (r["behind"], r["name"]) == (behind, n) and r["right"]),
                       key=lambda r: int(r["right"])) for n in "ab"}  # fmt: skip
        right, guess, units = (sum(int(r[c]) for r in best.values()) for c in ("right", "guess_right", "units"))
        gone[behind] = (right - guess) / (units - guess)
    assert gone[defences[0]] == 1 and gone[defences[1]] < 0.5  # a gradient of norm 1 is not seen through 30
    page = " ".join((out / "report.html").read_text().split())
    assert page.count("<svg") == 1 and "a guess from public records" in page
    assert "dB" not in page and "public images" not in page
    cells_ = [f'<td class="number">{g:.0%}' for g in gone.values()]
    at = [page.index(f'<th scope="row">{b}</th> {c}') for b, c in zip(defences, cells_, strict=True)]  # fmt: skip
    assert at == sorted(at)
    assert f"{defences[1]} leaves most of the update" in page
    before = (out / "protections.csv").read_bytes()
    assert run("audit", seen, "--truth", seen / "private", *told) == 0
    assert (out / "protections.csv").read_bytes() == before
    found = plans.items([seen], seen / "private")  # records and sentences are sampled, too, where nothing else is named
    for sampled in (False, True):
        asked_ = audit.plan(tmp_path, found, ["map", "auto"], 1.0, ["sign"], sampled).jobs
        assert (("a", "sign", "auto") in asked_) is sampled and ("a", "sign", "map") in asked_


@pytest.mark.slow
def test_an_audit_of_text_names_its_words_and_escapes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    draw = np.random.default_rng(0)  # no guess is right in a sentence of these
    words_ = [f"word{k}" for k in range(60)]
    lines = [f"{HOSTILE} {' '.join(draw.choice(words_, draw.integers(5, 9)))}" for _ in range(60)]
    file, seen = texts.written(tmp_path / "notes.txt", lines), tmp_path / "seen"
    known = dict.fromkeys(" ".join(lines).split())
    made = Tokenizer(models.WordLevel({w: k for k, w in enumerate(["[UNK]", *known])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    told = ["--data", file, "--data.tokenizer", tmp_path / "tokenizer.json", "--dtype", "float64"]
    kept = ["--out", seen / "a.safetensors", "--private", seen / "private"]
    assert run("observe", *told, *BERT, "--sigma", "1e-10", *kept) == 0
    capsys.readouterr()
    audited = ["audit", seen, *told, "--attacks", "dager", "--out"]
    assert run(*audited, tmp_path / "out", "--truth", seen / "private") == 0
    said = " ".join(capsys.readouterr().out.split())
    (row,) = read(tmp_path / "out" / "audit.csv")
    truth = private.read(seen / "private" / "a.safetensors").x
    count = int((truth >= 3).sum())
    assert (row["unit"], row["units"], row["right"], row["whole"]) == ("tokens", str(count), str(count), "1")
    assert row["named"] == str(len({int(i) for i in truth.flatten() if i >= 3})) and float(row["named_right"]) == 1
    assert f"{count} of {count} tokens are right" in said and "The sentence is right in every token." in said
    assert "name the words of 1 of 1; that takes no attack" in said and "1 of 1 gives its data away." in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert HOSTILE not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "The sentences, by dager" in page and 'class="token right"' in page
    # without the private sentence, and by an attack that is of no use: the words are named all the same
    assert run(*["map" if w == "dager" else w for w in audited], tmp_path / "blind") == 0
    (row,) = read(tmp_path / "blind" / "audit.csv")
    assert row["status"] == "does not apply" and "all discrete" in row["why"] and row["named_right"] == ""
    assert "1 of 1 gives its data away in part." in (tmp_path / "blind" / "report.html").read_text()
    assert run("audit", seen, "--attacks", "map", "--out", tmp_path / "untold") == 0  # of which text, nobody says
    (row,) = read(tmp_path / "untold" / "audit.csv")
    assert row["status"] == "does not apply" and "what its tokens are" in row["why"]


def recorded(path: Path, images: data.Images, source: str, scale: float = 1.0) -> Path:
    """A client that trains on one private example of a table or a text, in its own loop, as `pl.record` sees it."""
    torch.manual_seed(0)
    name, _, settings = source.partition(":")
    given = {"widths": (8,)} if name == "mlp" else {"width": 32, "heads": 2}
    more = {"vocabulary": len(images.vocabulary)} if images.vocabulary is not None else {}
    network = networks.get(name)(images.input_shape, len(images.classes), **given, **more).double()
    x, y = images.batch(0, 1)
    with pl.record(network, path, source=source):
        nn.functional.cross_entropy(network(scale * x.double()), y).backward()
    assert settings
    return path


@pytest.mark.slow
def test_a_client_that_records_its_table_or_its_text_is_audited(houses: Path, tmp_path: Path) -> None:
    notes = texts.written(tmp_path / "notes.txt")
    words_of = data.private(str(notes)).vocabulary
    assert words_of is not None
    bert = f"bert:width=32,heads=2,vocabulary={len(words_of)}"
    cases = (("table", houses, "mlp:widths=(8,)", "quotient"), ("text", notes, bert, "isir"))
    for name, file, source, attack in cases:
        folder = tmp_path / name
        recorded(folder / "a.safetensors", data.private(str(file)), source)
        told = ["--truth", folder / "private", "--data", file, "--dtype", "float64", "--attacks", attack]
        told += ["--isir.draws", "10"] if attack == "isir" else []
        assert run("audit", folder, *told, "--out", tmp_path / f"{name}-out") == 0
        (row,) = read(tmp_path / f"{name}-out" / "audit.csv")
        assert row["status"] == "done" and row["right"] == row["units"] and int(row["units"]) >= 3


def test_a_table_that_was_encoded_in_another_way_is_refused_and_not_called_private(
    houses: Path, tmp_path: Path
) -> None:
    images = data.private(str(houses))
    for name, scale in (("ours", 1.0), ("other", 3.0)):
        path = recorded(tmp_path / name / "a.safetensors", images, "mlp:widths=(8,)", scale)
        (item,) = plans.items([path], path.parent / "private")
        observed = pl.load(path, public=images)
        if name == "ours":
            assert knowledge.prepared(item, observed, "auto")[0].client.columns is not None
            continue
        with pytest.raises(BadInput, match="no rows as the named table encodes them"):
            knowledge.prepared(item, observed, "auto")


def row(**more: Any) -> dict[str, Any]:
    said = dict.fromkeys(("why", "labels", "protection", "assumed"), "")
    plain = {"name": "a", "attack": "gibbs", "status": "done", "seconds": 1.0, "examples": 1, **said, "unit": "cells"}
    return dict.fromkeys(audit.COLUMNS) | plain | {"units": 12, "guess_right": 4, "luck": 0.001} | more


@pytest.mark.parametrize(
    ("found", "level"),
    [
        ([row(right=10)], "away"),  # two of the guess's eight errors are left
        ([row(right=9)], "partly"),
        ([row(right=7)], "open"),
        ([row(right=12, luck=0.2)], "open"),  # one in five has as many right without the update
        ([row(right=4, trusted=True, sd_ratio=0.3)], "away"),
        ([row(right=None, trusted=True, sd_ratio=0.6, claimed=0.7)], "partly"),
        ([row(right=4, trusted=True, sd_ratio=0.9)], "little"),
        ([row(right=10), row(status="no time", why="x")], "away"),
        ([row(unit="tokens", right=4, trusted=True, sd_ratio=0.9, named=5)], "partly"),  # the rows name the words
        ([row(status="no time", why="x", unit="", named=5, named_right=1.0)], "partly"),
    ],
)
def test_a_finding_of_cells_is_measured_against_a_guess_and_against_luck(
    found: list[dict[str, Any]], level: str
) -> None:
    assert words.finding(found).level == level


def test_luck_is_the_share_of_public_batches_in_which_the_guess_is_as_right(houses: Path) -> None:
    public = data.public(str(houses))
    columns = public.columns
    assert columns is not None
    from pplleak.posterior import cells

    guess = cells.guess(columns, public.x)
    own = cells.agrees(columns, guess[None], columns.record(public.x).numpy()).sum(1)
    for k in range(4):
        found = counted.luck(k / 3, guess.tolist(), public.x, 1, columns, None)
        assert found == pytest.approx((own >= k).mean(), abs=4 * 0.5 / 4000**0.5)
    pairs = (own[:, None] + own[None] >= 3).mean()  # of two rows, all pairs
    found = [counted.luck(0.5, guess.tolist(), public.x, n, columns, None) for n in (1, 2)]
    assert found[1] == pytest.approx(pairs, abs=4 * 0.5 / 4000**0.5)
    assert abs(found[0] - pairs) > 4 * 0.5 / 4000**0.5  # the twin that looks at one row


def test_a_guess_of_text_is_the_most_frequent_word_at_each_place() -> None:
    from pplleak.posterior import tokens

    ids = torch.tensor([[1, 5, 6, 2, 0], [1, 5, 7, 2, 0], [1, 4, 2, 0, 0]]).float()
    assert tokens.guess(ids).tolist() == [0, 5, 6, 0, 0]
    found, of = counted._agreeing(np.array([0, 5, 6, 0, 0]), ids.numpy(), None, data.Vocabulary(tuple("abcdefgh")))
    assert found.tolist() == [2, 1, 0] and of.tolist() == [2, 2, 1]


def test_a_gradient_of_ones_own_has_no_private_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--gradient", str(tmp_path / "g.safetensors"), "--input-shape", "4", "--private", str(tmp_path)]
    one_line(["observe", *given, "--out", str(tmp_path / "o.safetensors")], capsys, "nothing here knows the private")
