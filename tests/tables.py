"""Tables as the tests write them, and the clients that train on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pplleak import channels
from pplleak.data import table
from pplleak.data.columns import Columns
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import build_client
from pplleak.models import optimal
from pplleak.settings import Named

HEADER = "colour,rooms,price,sold\n"


def rows(count: int = 120, seed: int = 0) -> str:
    """Lines of a table of categories (some are missing), a grid, a real number (some are missing) and a label."""
    draw = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        colour = draw.choice(["red", "green", "blue"], p=[0.5, 0.3, 0.2])
        rooms = int(np.clip(draw.poisson(1 + 1.5 * (colour == "red")), 0, 3))
        price = "" if draw.random() < 0.2 else f"{10 + 5 * rooms + 3 * draw.normal():.4f}"
        lines.append(f"{colour},{rooms},{price},{'yes' if draw.random() < 0.5 else 'no'}")
    return "\n".join(lines) + "\n"


def written(path: Path, text: str = "") -> Path:
    """A table in a file."""
    path.write_text(text or HEADER + rows())
    return path


def without_gaps(path: Path) -> Path:
    """A table of a category, two grids and a number, of which no cell is missing: they are moved together."""
    draw = np.random.default_rng(0)
    lines = ["colour,rooms,floor,price,sold"]
    for _ in range(150):
        rooms, floor = draw.integers(1, 4), draw.integers(0, 5)
        price = 10 + 5 * rooms - 2 * floor + draw.normal()
        lines.append(f"{draw.choice(['red', 'blue'])},{rooms},{floor},{price:.4f},{draw.choice(['yes', 'no'])}")
    return written(path, "\n".join(lines) + "\n")


def shared(
    path: Path,
    batch: int = 1,
    sigma: float = 0.1,
    index: int = 0,
    labels: list[int] | None = None,
    drop: tuple[str, ...] = (),
    **network: Any,
) -> tuple[Observation, Callable[..., Any]]:
    """What a small client of a table's private rows shares through Gaussian noise, and the model that fits it."""
    private, public = table.halves(path, drop=drop)
    assert private.columns is not None
    settings = {"widths": (5,), **network}
    client = build_client(
        Named("mlp", settings), private.input_shape, len(private.classes), dtype="float64", columns=private.columns
    )
    x, y = private.batch(index, batch)
    x, y = private.columns.encode(*private.columns.decode(x.double())), y if labels is None else torch.tensor(labels)
    torch.manual_seed(0)
    g = channels.Gaussian(client.update(x, y), sigma).sample()
    said = Protection(channel=Named("gaussian", {"sigma": sigma})).filled()
    observed = Observation(g, batch, y, client, said, public.x, x)
    return observed, functools.partial(optimal.model, prior="records", sigma=sigma, reference=public.x)


def columns_of(observed: Observation) -> Columns:
    columns = observed.client.columns
    assert columns is not None
    return columns
