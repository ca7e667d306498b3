"""How close a reconstruction is: PSNR, SSIM, and the matching of a batch to its truth.

Arrays are NumPy, images in [0, 1] with shape (batch, *input_shape). Reconstructions are clipped to [0, 1] before
they are scored: the server knows the range of a pixel.
"""

from __future__ import annotations

import numpy as np

_FLOOR = 1e-12  # of the mean squared error: an exact reconstruction scores 120 dB, not infinity


def psnr(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, 10 log₁₀ (1 / MSE), in dB; shape (batch,)."""
    error = np.clip(x, 0, 1).astype(np.float64) - truth
    return -10 * np.log10(np.maximum(np.mean(error**2, axis=tuple(range(1, truth.ndim))), _FLOOR))


def ssim(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity of each image (Wang et al. 2004, eq. 13), scikit-image's with a 7x7 window (smaller for
    smaller images); shape (batch,). NaN for data that are not images of at least 3x3 pixels."""
    from skimage.metrics import structural_similarity  # slow to import

    side = min(truth.shape[-2:]) if truth.ndim == 4 else 0
    window = min(7, side - (side + 1) % 2)
    if window < 3:
        return np.full(len(truth), np.nan)
    return np.array(
        [
            structural_similarity(np.clip(a, 0, 1).astype(np.float64), b.astype(np.float64),
                                  win_size=window, data_range=1.0, channel_axis=0)
            for a, b in zip(x, truth, strict=True)
        ]
    )  # fmt: skip


def match(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The order of x's examples that fits the truth best: a gradient does not say which example is which.

    Minimises Σ_b ‖x_{π(b)} − truth_b‖² over permutations π; returns π, shape (batch,).
    """
    if len(x) == 1:
        return np.zeros(1, dtype=int)
    from scipy.optimize import linear_sum_assignment  # slow to import

    cost = ((x[:, None] - truth[None]) ** 2).reshape(len(x), len(truth), -1).sum(-1)
    rows, columns = linear_sum_assignment(cost)
    return rows[np.argsort(columns)]


def coverage(draws: np.ndarray, truth: np.ndarray, level: float = 0.9) -> float:
    """The fraction of pixels whose true value lies in the central `level` interval of its draws.

    Args:
        draws: (draws, batch, *input_shape). truth: (batch, *input_shape).
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return float(np.mean((low <= truth) & (truth <= high)))
