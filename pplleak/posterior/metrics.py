"""How close a reconstruction is: PSNR, SSIM, and the matching of a batch to its truth.

Arrays are NumPy, images in [0, 1] with shape (batch, *input_shape). Reconstructions are clipped to [0, 1] before
they are scored: the server knows the range of a pixel.
"""

from __future__ import annotations

import numpy as np

_FLOOR = 1e-12  # of the mean squared error: an exact reconstruction scores 120 dB, not infinity
_C1, _C2 = 0.01**2, 0.03**2  # of SSIM, for a range of 1


def psnr(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, 10 log₁₀ (1 / MSE), in dB; shape (batch,)."""
    error = np.clip(x, 0, 1).astype(np.float64) - truth
    return -10 * np.log10(np.maximum(np.mean(error**2, axis=tuple(range(1, truth.ndim))), _FLOOR))


def ssim(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity of each image (Wang et al. 2004, eq. 13), shape (batch,): the mean over its channels and
    over all windows of 7x7 pixels (smaller for smaller images) of

        (2 μ_x μ_t + c₁) (2 σ_xt + c₂) / ((μ_x² + μ_t² + c₁) (σ_x² + σ_t² + c₂)),    c₁ = 0.01²,  c₂ = 0.03²

    with sample (co)variances, as scikit-image has it. NaN for data that are not images of at least 3x3 pixels.
    """
    side = min(truth.shape[-2:]) if truth.ndim == 4 else 0
    window = min(7, side - (side + 1) % 2)
    if window < 3:
        return np.full(len(truth), np.nan)
    a, b = np.clip(x, 0, 1).astype(np.float64), truth.astype(np.float64)
    mean_a, mean_b = _smooth(a, window), _smooth(b, window)
    sample = window**2 / (window**2 - 1)
    covariance = sample * (_smooth(a * b, window) - mean_a * mean_b)
    variances = sample * (_smooth(a * a, window) - mean_a**2 + _smooth(b * b, window) - mean_b**2)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return np.mean(luminance * (2 * covariance + _C2) / (variances + _C2), axis=(1, 2, 3))


def _smooth(images: np.ndarray, side: int) -> np.ndarray:
    """The mean of every window of side x side pixels that lies within the image: (…, H − side + 1, W − side + 1)."""
    for axis in (-2, -1):
        images = np.lib.stride_tricks.sliding_window_view(images, side, axis).mean(-1)
    return images


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
