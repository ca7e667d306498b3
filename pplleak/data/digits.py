"""scikit-learn's digits, 8 x 8: the last 297 are private, the first 1500 public; nothing is read from a disk."""

from __future__ import annotations

from pathlib import Path

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
    from sklearn.datasets import load_digits  # where it is used: it takes two seconds, and other data need none

    bunch = load_digits()
    x = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(bunch.target, dtype=torch.long)
    return Images(x[part], y[part], tuple(str(d) for d in range(10)))
