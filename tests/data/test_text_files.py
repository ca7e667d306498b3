"""Text: sentences and their tokens, the law of sentences, and one line for what cannot be had."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import pytest
import torch
from texts import few, sentences, written

from pplleak import data
from pplleak.data import text
from pplleak.data.vocabulary import BEGIN, END, PAD, SPECIAL, lengths
from pplleak.errors import BadInput
from pplleak.priors.sentences import fit_sentences


def test_sentences_come_back_from_their_ids_and_halves_are_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "notes.txt")
    private, public = data.private(str(path)), data.public(str(path))
    vocabulary = private.vocabulary
    assert vocabulary is not None and (len(private), len(public)) == (12, 48)
    spoken = [" ".join(vocabulary.words(ids.tolist())) for ids in torch.cat([private.x, public.x])]
    assert sorted(spoken) == sorted(sentences())
    ids, n = private.x.long(), lengths(private.x.long())
    assert (ids[:, 0] == BEGIN).all() and (ids[torch.arange(12), n + 1] == END).all()
    assert all((row[k + 2 :] == PAD).all() for row, k in zip(ids, n.tolist(), strict=True))
    assert data.private(str(path)).classes == ("0", "1")


def test_a_tab_names_the_class_and_a_file_of_tokenizers_the_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = written(tmp_path / "notes.txt", [f"{s}\t{'yes' if k % 3 else 'no'}" for k, s in enumerate(sentences())])
    assert data.private(str(path)).classes == ("no", "yes")
    words = dict.fromkeys(" ".join(sentences()).split())
    made = Tokenizer(models.WordLevel({w: k for k, w in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    images = data.private(f"{path}:tokenizer='{tmp_path / 'tokenizer.json'}'")
    assert images.vocabulary is not None and images.vocabulary.tokens == (*SPECIAL, "[UNK]", *words)
    strange = written(tmp_path / "other.txt", [*sentences(), "qwertz uiop"])
    with pytest.raises(BadInput, match=r"sentence 61 .* no word that the tokenizer knows"):
        data.private(f"{strange}:tokenizer='{tmp_path / 'tokenizer.json'}'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "0 sentences, one a line, and needs 5"),
        ("one two\n" * 3, "3 sentences"),
        ("a b\n" * 9 + "word " * 1_000_000, "line 10 .* 4,999,999 letters"),
        ("a b\n" * 9 + "x " * 600, "600 tokens, and a sentence at most 510"),
        ("same\n" * 9, "one word alone"),
        ("a b\tyes\n" * 5 + "a b\n" * 5, "some lines .* have a tab"),
        ("a b\tyes\n" * 9, "1 classes behind its tabs"),
        ("\udcff".encode("utf-8", "surrogateescape") + b"a b\n" * 9, "no text in UTF-8"),
    ],
)  # fmt: skip
def test_what_is_no_text_of_sentences_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=message) as refused:
        text.halves(path)
    assert "\n" not in str(refused.value)


def test_a_pickled_tokenizer_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "tokenizer.json").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        text.halves(written(tmp_path / "notes.txt"), tokenizer=str(tmp_path / "tokenizer.json"))
    assert not (tmp_path / "ran").exists()


def test_the_law_of_sentences_sums_to_one_and_draws_what_it_says(tmp_path: Path) -> None:
    public = data.public(str(few(tmp_path / "few.txt")))
    assert public.vocabulary is not None
    law = fit_sentences(public.x, len(public.vocabulary), 5.0, 1.0, torch.float64, torch.device("cpu"))
    own = range(len(SPECIAL), len(public.vocabulary))
    each = [w for n in (1, 2, 3) for w in itertools.product(own, repeat=n)]
    ids = torch.stack([public.vocabulary.framed(w, 5) for w in each])
    p = law.log_prob(ids).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    torch.manual_seed(0)
    draws = law.draw(torch.Size([20_000]))
    seen = (draws[:, None] == ids).all(-1).double().mean(0)
    errors = (p * (1 - p) / len(draws)).sqrt()
    assert float(((seen - p) / errors).abs().max()) < 5
    wrong = fit_sentences(public.x, len(public.vocabulary), 500.0, 1.0, torch.float64, torch.device("cpu"))
    assert float(((seen - wrong.log_prob(ids).exp()) / errors).abs().max()) > 5, "pairs as if words stood alone"
