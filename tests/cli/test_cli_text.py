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


@pytest.mark.slow
def test_a_network_is_trained_on_sentences_and_attacked_as_it_then_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, trained, out = written(tmp_path / "notes.txt"), tmp_path / "train", tmp_path / "out"
    few = ["--clients", "2", "--batch-size", "4", "--steps", "2"]
    assert run(["train", "--data", str(file), *TINY, *few, "--lr", "1", "--out", str(trained)]) == 0
    with (trained / "log.csv").open() as kept:
        rows = list(csv.DictReader(kept))
    assert [r["step"] for r in rows] == ["0", "2"] and rows[0]["loss"] != rows[1]["loss"]
    attacked = ["attack", "--data", str(file), *TINY, *POINT, "--sigma", "1e-9", "--out"]
    norms = []
    for step in (0, 2):
        weights = str(trained / f"step-{step}.safetensors")
        assert run([*attacked, str(out / str(step)), "--checkpoint", weights]) == 0
        norms.append(json.loads((out / str(step) / "summary.json").read_text())["tokens_named"])
    assert norms[0] == norms[1]  # the words are those of the sentence, whatever the weights are
    capsys.readouterr()
    one_line(["train", "--data", str(file), "--out", str(tmp_path / "other")], capsys, "take the network bert")


@pytest.mark.slow
def test_protections_of_a_text_are_compared_and_one_that_cannot_be_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, seen = written(tmp_path / "notes.txt"), tmp_path / "seen"
    told = ["--data", str(file), "--dtype", "float64"]
    kept = ["--out", str(seen / "a.safetensors"), "--private", str(seen / "private")]
    wide = ["--network", "gpt2", "--network.width", "32", "--network.heads", "2"]
    assert run(["observe", *told, *wide, "--sigma", "1e-9", *kept]) == 0
    capsys.readouterr()
    behind = ["--defences", "gaussian:sigma=1e-8", "soteria:rate=0.4"]
    words = ["--truth", str(seen / "private"), "--attacks", "dager", "--budget", "1", *behind]
    assert run(["audit", str(seen), *told, *words, "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "7 of 7 tokens are right" in said
    assert "No attack had a result behind soteria:rate=0.4 (soteria" in said and "token ids" in said
    assert "Behind gaussian:sigma=1e-08, the rows" in said or "Behind gaussian:sigma=1e-8, the rows" in said
    with (tmp_path / "out" / "protections.csv").open() as kept_:
        rows = {r["behind"]: r for r in csv.DictReader(kept_)}
    (noisy,) = [r for b, r in rows.items() if b.startswith("gaussian")]
    assert noisy["unit"] == "tokens" and noisy["right"] == noisy["units"]


@pytest.mark.parametrize("command", ["compare", "risk", "calibrate", "bits", "defend"])
def test_commands_that_know_no_text_say_so(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "notes.txt")
    one_line([command, "--data", str(file), "--out", str(tmp_path / "out")], capsys, "is text")


def test_a_missing_extra_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "notes.txt")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    one_line(["attack", "--data", str(file), *TINY, "--out", str(tmp_path / "out")], capsys, "pplleak[text]")
