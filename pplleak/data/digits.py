"""scikit-learn's digits, 8 x 8: the last 297 are private, the first 1500 public; nothing is read from a disk."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from pplleak.data.images import Images

PUBLIC = 1500


def private(root: Path) -> Images:
    """The last 297."""
    return _part(slice(PUBLIC, None))


def public(root: Path) -> Images:
    """The first 1500."""
    return _part(slice(PUBLIC))


def _part(part: slice) -> Images:
    table = _table()
    x = torch.tensor(table[:, :-1] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(table[:, -1], dtype=torch.long)
    return Images(x[part], y[part], tuple(str(d) for d in range(10)))


def _table() -> np.ndarray:
    """A row an image: 64 pixels of 0 to 16, and the label; (1797, 65), float64.

    The file that `sklearn.datasets.load_digits` reads, without importing scikit-learn, which takes as long as torch; by
    that function itself where the file lies elsewhere.
    """
    spec = importlib.util.find_spec("sklearn")
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent / "datasets/data/digits.csv.gz"
    if file is not None and file.is_file():
        return np.loadtxt(file, delimiter=",")  # of a .gz, too
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
