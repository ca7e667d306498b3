"""scikit-learn's wine: 178 wines, 13 measurements each; the grower is the label."""

from __future__ import annotations

from pathlib import Path

from pplleak.data import table
from pplleak.data.images import Images

TABLE = True  # rows, not images


def private(root: Path) -> Images:
    """A fifth of the rows."""
    return table.of_sklearn("load_wine")[0]


def public(root: Path) -> Images:
    """The others."""
    return table.of_sklearn("load_wine")[1]
