"""scikit-learn's breast cancer: 569 tumours, 30 measurements each; the diagnosis is the label."""

from __future__ import annotations

from pathlib import Path

from pplleak.data import table
from pplleak.data.images import Images

TABLE = True  # rows, not images


def private(root: Path) -> Images:
    """A fifth of the rows."""
    return table.of_sklearn("load_breast_cancer")[0]


def public(root: Path) -> Images:
    """The others."""
    return table.of_sklearn("load_breast_cancer")[1]
