"""Results that are no images, for people: the page of one attack, and what the page of an audit lists of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pplleak.posterior import Posterior
from pplleak.posterior.cells import columns_of
from pplleak.posterior.summary import summarise, verdict
from pplleak.posterior.tokens import tokens, vocabulary_of
from pplleak.studies.attack import pages, sentences
from pplleak.studies.attack.report import heading


def page(posterior: Posterior, folder: Path) -> list[str] | None:
    """report.html of records or of sentences into a folder, and its first sentence; None of images."""
    columns, vocabulary = columns_of(posterior), vocabulary_of(posterior)
    if columns is None and vocabulary is None:
        return None
    summary = summarise(posterior)
    if columns is not None:
        pages.of_records(posterior, summary, columns, heading(posterior), folder)
    else:
        sentences.page(posterior, summary, heading(posterior), folder)
    return [verdict(summary)]


def parts(posterior: Posterior, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Records or sentences as a page lists them, at most `pages.MOST`, more: those that are left out; rows: what the
    embeddings' rows say; {} of images."""
    columns, vocabulary = columns_of(posterior), vocabulary_of(posterior)
    said = {"known": posterior.truth is not None, "sure": posterior.kind != "point"}
    if columns is not None:
        found = pages.shown_records(posterior, columns)
        return said | {"records": found[: pages.MOST], "more": max(0, len(found) - pages.MOST)}
    if vocabulary is not None:
        shown, named = sentences.shown(tokens(posterior, vocabulary)), sentences.named_rows(dict(summary))
        return said | {"sentences": shown[: pages.MOST], "rows": named, "more": max(0, len(shown) - pages.MOST)}
    return {}
