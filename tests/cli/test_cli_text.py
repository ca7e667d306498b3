"""Text from the command line: its tokens on the terminal, in files, a page and a picture; mistakes are one line."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from command_line import one_line, run
from texts import sentences, written

TINY = ["--network", "bert", "--network.width", "8", "--network.heads", "2", "--network.depth", "1"]
POINT = ["--inference", "lamp", "--inference.steps", "3"]
QUICK = ["--inference.draws", "8", "--inference.chains", "4", "--inference.candidates", "2", "--inference.islands", "2"]


@pytest.mark.slow
def test_an_attack_on_text_tells_its_tokens_and_a_hostile_one_stays_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    lines = [f"<script>alert(1)</script> [red]$\\x$[/red] {s}" for s in sentences()]
    file, out = written(tmp_path / "notes.txt", lines), tmp_path / "attack"
    words = dict.fromkeys(" ".join(lines).split())
    made = Tokenizer(models.WordLevel({w: k for k, w in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    told = ["--data.tokenizer", str(tmp_path / "tokenizer.json"), "--batch-size", "4"]
    assert run(["attack", "--data", str(file), *told, *TINY, *POINT, "--sigma", "1e-10", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "embedding rows name" in said and "what the gradient says of each sentence" in said and "ROUGE-L" in said
    assert "PSNR" not in said and "record that" not in said
    with (out / "tokens.csv").open() as kept:
        rows = list(csv.DictReader(kept))
    assert any("<script>alert(1)</script>" in r["truth"] for r in rows)
    page = (out / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    summary = json.loads((out / "summary.json").read_text())
    truth = {r["truth"] for r in rows if r["truth"]}
    assert set(summary["tokens_named"]) == truth
    true = [r for r in rows if r["truth"]]
    assert summary["token_accuracy"] == pytest.approx(sum(r["right"] == "True" for r in true) / len(true))
    assert (out / "attack.png").stat().st_size > 1000
    (out / "report.html").unlink()
    assert run(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page


@pytest.mark.slow
def test_a_shared_file_is_attacked_with_its_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, shared = written(tmp_path / "notes.txt"), tmp_path / "shared.safetensors"
    words = ["--data", str(file), "--out"]
    assert run(["observe", *words, str(shared), *TINY, "--sigma", "1"]) == 0
    told = ["--observed", str(shared), *QUICK]
    assert run(["attack", *words, str(tmp_path / "out"), *told]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["token_accuracy"] is None
    with (tmp_path / "out" / "tokens.csv").open() as kept:
        assert all(0 <= float(r["probability"]) <= 1 for r in csv.DictReader(kept))
    capsys.readouterr()
    one_line(["attack", "--observed", str(shared), "--out", str(tmp_path / "other")], capsys, "is of text")


@pytest.mark.parametrize("command", ["compare", "risk", "calibrate", "bits", "defend", "train"])
def test_commands_that_know_no_text_say_so(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "notes.txt")
    one_line([command, "--data", str(file), "--out", str(tmp_path / "out")], capsys, "is text")


def test_a_missing_extra_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "notes.txt")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    one_line(["attack", "--data", str(file), *TINY, "--out", str(tmp_path / "out")], capsys, "pplleak[text]")
