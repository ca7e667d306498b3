"""Pictures of random pixels, and how they come to lie in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def idx(values: np.ndarray, kind: int = 0x08) -> bytes:
    """The bytes of an idx file, as LeCun et al. describe them."""
    sizes = np.array(values.shape, dtype=">i4").tobytes()
    return bytes([0, 0, kind, values.ndim]) + sizes + values.tobytes()


def mnist(root: Path) -> Path:
    """MNIST/raw of three training images and two test images."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for half, count in (("train", 3), ("t10k", 2)):
        (folder / f"{half}-images-idx3-ubyte").write_bytes(idx(pictures(count, 28, 28, seed=count)))
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    return folder
