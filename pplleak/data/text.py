"""Text: FILE.txt, one sentence a line; behind a tab its class, where the lines have one.

Words and punctuation marks, in small letters, are the tokens, and the vocabulary is that of the whole file: a
federation agrees on its tokenizer before it trains. A tokenizer of your own is a file of the package `tokenizers`,
tokenizer.json, which is data and no code. Sentences without a class get one of two in turn, so that there is something
to learn.

A fifth of the lines, drawn once and for all, is private, the rest public.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pplleak import memory, reading
from pplleak.data.images import Images
from pplleak.data.vocabulary import SPECIAL, Vocabulary
from pplleak.errors import BadInput, printable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES = 1 << 28  # of one file
LONGEST = 510  # tokens of a sentence: BERT's 512 with those of its frame
WORDS = 100_000  # of a vocabulary
LEAST = 5  # sentences
CLASSES = 100
UNKNOWN = "[UNK]"
LETTERS = 100 * LONGEST  # of a line: more are not one sentence, and are not cut into tokens


def halves(path: Path, *, tokenizer: str = "") -> tuple[Images, Images]:
    """The private and the public sentences of a file.

    Args:
        tokenizer: a tokenizer.json of the package `tokenizers`; "" makes one of the file's own words.

    Raises:
        BadInput: it is no text of sentences, or the tokenizer does not know its words.
    """
    changed = tuple(p.stat().st_mtime if p.is_file() else 0.0 for p in (path, Path(tokenizer)))
    return _halves(path, tokenizer, changed)


@lru_cache(maxsize=4)
def _halves(path: Path, tokenizer: str, changed: tuple[float, ...]) -> tuple[Images, Images]:
    said = printable(path)
    sentences, y, classes = _lines(path, said)
    made = _opened(Path(tokenizer)) if tokenizer else _of_words(sentences)
    ids = [e.ids for e in made.encode_batch(sentences, add_special_tokens=False)]
    unknown = made.token_to_id(UNKNOWN)
    for k, own in enumerate(ids):
        if not own or all(i == unknown for i in own):
            raise BadInput(f"sentence {k + 1} of {said} has no word that the tokenizer knows "
                           f"('{printable(sentences[k], 30)}'): leave it out, or take another tokenizer")  # fmt: skip
        if len(own) > LONGEST:
            raise BadInput(f"sentence {k + 1} of {said} has {len(own):,} tokens, and a sentence at most {LONGEST}: put "
                           "one sentence on a line")  # fmt: skip
    size = made.get_vocab_size()
    names = [made.id_to_token(i) or "" for i in range(size)]
    if len({i for own in ids for i in own}) < 2:
        raise BadInput(f"{said} consists of one word alone: there is nothing to infer")
    vocabulary = Vocabulary((*SPECIAL, *names))
    length = max(map(len, ids)) + 2
    memory.require(16 * len(ids) * length, f"{said}, {len(ids):,} sentences of up to {length} tokens,", "take fewer")
    x = torch.stack([vocabulary.framed([i + len(SPECIAL) for i in own], length) for own in ids]).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    private = torch.zeros(len(x), dtype=torch.bool)
    private[order[: max(1, len(x) // 5)]] = True
    parts = [Images(x[k], y[k], classes, vocabulary=vocabulary) for k in (private, ~private)]
    return parts[0], parts[1]


def _lines(path: Path, said: str) -> tuple[list[str], torch.Tensor, tuple[str, ...]]:
    """Sentences, their classes as numbers, and the classes' names."""
    raw = reading.contents(path, BYTES)
    memory.require(20 * len(raw), f"{said}, {len(raw)} bytes,", "take fewer sentences")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{said} is no text in UTF-8: {printable(error)}") from error
    rows = [(k + 1, line.strip()) for k, line in enumerate(text.split("\n")) if line.strip()]
    if len(rows) < LEAST:
        raise BadInput(f"{said} has {len(rows)} sentences, one a line, and needs {LEAST}: some are attacked, the "
                       "others are what the adversary knows")  # fmt: skip
    for k, line in rows:
        if len(line) > LETTERS:
            raise BadInput(f"line {k} of {said} has {len(line):,} letters, and a sentence at most {LONGEST} tokens: "
                           "put one sentence on a line")  # fmt: skip
    cells = [line.split("\t") for _, line in rows]
    counts = {len(c) for c in cells}
    if counts == {1}:
        return [c[0] for c in cells], torch.arange(len(cells)) % 2, ("0", "1")
    if counts != {2} or not all(c[0].strip() and c[1].strip() for c in cells):
        raise BadInput(f"some lines of {said} have a tab, and others not: a line is a sentence, or a sentence, a tab "
                       "and its class, in all lines alike")  # fmt: skip
    classes = sorted({c[1].strip() for c in cells})
    if not 2 <= len(classes) <= CLASSES:
        raise BadInput(f"{said} has {len(classes)} classes behind its tabs, and needs 2 to {CLASSES}")
    places = {c: k for k, c in enumerate(classes)}
    return [c[0] for c in cells], torch.tensor([places[c[1].strip()] for c in cells]), tuple(classes)


def _package() -> Any:
    try:
        import tokenizers  # slow to import
    except ImportError as error:
        raise BadInput("text needs tokenizers, transformers and rouge-score: pip install 'pplleak[text]'") from error
    return tokenizers


def _of_words(sentences: list[str]) -> Tokenizer:
    """A tokenizer of the words and punctuation marks of sentences, the most frequent first."""
    package = _package()
    made: Tokenizer = package.Tokenizer(package.models.WordLevel(unk_token=UNKNOWN))
    made.normalizer = package.normalizers.Lowercase()
    made.pre_tokenizer = package.pre_tokenizers.Whitespace()
    trainer = package.trainers.WordLevelTrainer(vocab_size=WORDS, special_tokens=[UNKNOWN], show_progress=False)
    made.train_from_iterator(sentences, trainer)
    return made


def _opened(path: Path) -> Tokenizer:
    """A tokenizer's file: JSON, which chooses no code."""
    text, package = reading.contents(path), _package()
    try:
        made: Tokenizer = package.Tokenizer.from_str(text.decode())
    except Exception as error:  # a parser in Rust, which raises plain Exception; UnicodeDecodeError
        raise BadInput(f"{printable(path)} is no tokenizer.json: {printable(error)}") from error
    if not 2 <= made.get_vocab_size() <= WORDS:
        raise BadInput(f"the tokenizer {printable(path)} has a vocabulary of {made.get_vocab_size():,}, and needs 2 to "
                       f"{WORDS:,}")  # fmt: skip
    made.no_truncation()
    made.no_padding()
    return made
