"""Texts as the tests write them, and the clients that train on them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.models import optimal
from pplleak.settings import Named

PARTS = (
    ["the bank", "a hospital", "our clerk", "this lawyer"], ["signs", "keeps", "denies", "shares"],
    ["the contract", "a letter", "every record"], ["", "on monday", "before noon", "without delay"],
)  # fmt: skip


def sentences(count: int = 60, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choice(part) for part in PARTS).strip() for _ in range(count)]


def written(path: Path, lines: list[str] | None = None) -> Path:
    """A text in a file."""
    path.write_text("\n".join(sentences() if lines is None else lines) + "\n")
    return path


def few(path: Path) -> Path:
    """A text of three words, in sentences of one to three of them."""
    draw = random.Random(1)
    return written(path, [" ".join(draw.choices("abc", (5, 3, 2), k=draw.randint(1, 3))) for _ in range(60)])


def shared(
    path: Path, network: str = "bert", *, batch: int = 1, sigma: float = 1e-9, index: int = 0, **settings: Any
) -> tuple[Observation, Callable[..., Any]]:
    """What a small client of a text's private sentences shares through Gaussian noise, and the model that fits it."""
    made = Named(network, {"width": 32, "heads": 2, **settings})
    channel = Named("gaussian", {"sigma": sigma})
    observed = observe(
        Scenario(str(path), index=index, batch_size=batch, network=made, dtype="float64",
                 protection=Protection(channel=channel))
    )  # fmt: skip
    return observed, functools.partial(optimal.model, prior="sentences", sigma=sigma, reference=observed.public)
