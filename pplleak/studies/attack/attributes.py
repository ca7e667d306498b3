"""What an attack says of itself: the attributes that its posterior carries besides the numbers."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import Tensor

from pplleak.density import embedding_rows, label_recovery
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, cells, tokens
from pplleak.settings import Named


def table(observed: Observation) -> dict[str, Any]:
    """Of records: their columns; of text: its vocabulary, and the tokens that the rows of the table of embeddings name;
    of both what one would guess without the gradient."""
    columns, vocabulary = observed.client.columns, observed.client.vocabulary
    if vocabulary is not None:
        named = embedding_rows.named(observed)
        told = None if named is None or named.tied else named
        words = None if told is None else [vocabulary.tokens[i] for i in told.tokens if i < len(vocabulary)]
        exact = None if told is None else told.exact
        guess = [] if observed.public is None else tokens.guess(observed.public).tolist()
        said = {"tokens_named": words, "tokens_named_exactly": exact, "guess": guess}
        return {"vocabulary": list(vocabulary.tokens), **said}
    if columns is None:
        return {}
    guess = [] if observed.public is None else cells.guess(columns, observed.public).tolist()
    return {"columns": columns.to_json(), "guess": guess}


def inferred(posterior: Posterior) -> dict[str, Any]:
    """σ where it was inferred: its posterior median, and its 90 % interval where there are draws."""
    if "log_sigma" not in posterior.latents:
        return {}
    low, middle, high = np.exp(np.quantile(posterior.latents["log_sigma"], [0.05, 0.5, 0.95])).tolist()
    return {"sigma": middle, "sigma_interval": None if posterior.kind == "point" else [low, high]}


def read(observed: Observation, model: str) -> dict[str, Any]:
    """Labels that a model's own rule read, as `label_recovery.recovered` says it; sure, where the best rule there is
    reads the same and is sure, and not, where it reads others; None, where there is no other that applies."""
    assert observed.labels is not None
    labels = sorted(observed.labels.tolist())
    said: dict[str, Any] = {"labels": labels, "rule": f"the rule of {model}", "confidence": None, "sure": None,
                            "right": None, "others": None}  # fmt: skip
    channel = observed.protection.channel
    with suppress(BadInput):
        other = label_recovery.recover(
            observed.client, observed, sigma=observed.sigma or 0.0, public=observed.public,
            channel="gaussian" if channel is None else channel.name,
        )  # fmt: skip
        agree = sorted(other.labels.tolist()) == labels
        said |= {
            "sure": agree and other.sure,
            "confidence": other.confidence if agree else None,
            "others": None if agree else f"{' '.join(map(str, other.labels.tolist()))} ({other.rule})",
        }
    return said


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON can hold them; a tensor by its shape, a name with settings as it is written."""

    def written(value: Any) -> Any:
        if isinstance(value, Tensor):
            return f"tensor{tuple(value.shape)}"
        return str(value) if isinstance(value, Named) else value

    return {n: written(v) for n, v in values.items()}


def versions() -> dict[str, str]:
    """What a result was made with."""
    packages = ("pplleak", "torch", "pyro-ppl", "arviz", "numpy")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}
