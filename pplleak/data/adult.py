"""UCI Adult, ROOT/adult/adult.data and adult.test: a census with the income as label; the test rows are private."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from pplleak.data import table
from pplleak.data.images import Images
from pplleak.errors import BadInput

TABLE = True  # rows, not images
NAMES = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race",
    "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
)  # fmt: skip


def private(root: Path) -> Images:
    """The rows of adult.test."""
    return _halves(root)[0]


def public(root: Path) -> Images:
    """The rows of adult.data."""
    return _halves(root)[1]


@lru_cache(maxsize=2)
def _halves(root: Path) -> tuple[Images, Images]:
    import pandas as pd

    folder = root / "adult"
    if not (folder / "adult.data").is_file():
        raise BadInput(f"no Adult under {folder}: the data root is the folder that holds adult/adult.data and "
                       "adult/adult.test, of UCI; nothing is downloaded")  # fmt: skip
    known, attacked = table.read(folder / "adult.data", NAMES), table.read(folder / "adult.test", NAMES, skip=1)
    frame = pd.concat([known, attacked], ignore_index=True)
    frame["income"] = frame["income"].str.rstrip(".")  # of the test rows
    return table.split(frame, "income", np.arange(len(frame)) >= len(known), str(folder))
