"""Images of a result as PNG files that stand in the page itself: data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from pplleak.posterior import Posterior, metrics

DATA = "data:image/png;base64,"
MOST = 4  # examples of an update that are shown: those that the attack came nearest to
DRAWS = 3
FEATURES = 20  # of data that are no images


@dataclass(frozen=True)
class Picture:
    """An image of the page: what stands under it, the PNG, and what it is in words."""

    caption: str
    uri: str
    alt: str


def png(image: np.ndarray) -> str:
    """The data URI of an image (channel, row, col), (row, col) or (row, col, 3) of colours, in [0, 1]."""
    from PIL import Image

    if image.ndim == 3 and image.shape[-1] != 3:
        image = np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image.mean(0)
    pixels = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, "PNG", optimize=True)
    return DATA + base64.b64encode(kept.getvalue()).decode()


def ordered(posterior: Posterior) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The examples of the mode and of the draws as they match the truth, and which to show, the nearest first."""
    count = len(posterior.mode)
    of_mode = of_draws = np.arange(count)
    if posterior.truth is None:
        return of_mode, of_draws, np.arange(min(count, MOST))
    of_mode, of_draws = (metrics.match(x, posterior.truth) for x in (posterior.mode, posterior.mean))
    near = np.maximum(metrics.psnr(posterior.mode[of_mode], posterior.truth),
                      metrics.psnr(posterior.mean[of_draws], posterior.truth))  # fmt: skip
    return of_mode, of_draws, np.argsort(-near, kind="stable")[:MOST]


def rows(posterior: Posterior, prior_sd: float | None) -> list[list[Picture]]:
    """A row of pictures for every example that is shown; [] for data that are no images."""
    if posterior.mode.ndim != 4:
        return []
    of_mode, of_draws, shown = ordered(posterior)
    made = []
    for number, k in enumerate(shown, 1):
        row = []
        truth, mode = posterior.truth, posterior.mode[of_mode[k]]
        if truth is not None:
            row.append(Picture("private image", png(truth[k]), f"Example {number}: the private image itself"))
        row.append(_made(f"most probable{_near(mode, truth, k)}", mode, number, "the most probable image"))
        if posterior.kind != "point":
            mean, sd = posterior.mean[of_draws[k]], posterior.sd[of_draws[k]]
            row.append(_made(f"mean{_near(mean, truth, k)}", mean, number, "the mean of all images that fit"))
            scale = max(float(sd.max()), prior_sd or 0.0, 1e-9)
            row.append(Picture("uncertainty", png(_heat(sd.mean(0) / scale)),
                               f"Example {number}: how uncertain each pixel is, on average {sd.mean():.2f} of the "
                               "range from black to white; bright is uncertain"))  # fmt: skip
            picks = np.linspace(0, len(posterior.draws) - 1, DRAWS + 2).astype(int)[1:-1]
            for d, pick in enumerate(picks, 1):
                row.append(_made(f"draw {d}", posterior.draws[pick][of_draws[k]], number,
                                 f"draw {d}, an image that explains the update as well"))  # fmt: skip
        made.append(row)
    return made


def features(posterior: Posterior) -> list[dict[str, Any]]:
    """Of data that are no images: truth, estimate and 90 % interval of the first features of the first example."""
    if posterior.mode.ndim == 4:
        return []
    of_mode, of_draws, shown = ordered(posterior)
    k = int(shown[0])
    mode = posterior.mode[of_mode[k]].reshape(-1)[:FEATURES]
    low, high = (b[of_draws[k]].reshape(-1) for b in posterior.interval())
    truth = None if posterior.truth is None else posterior.truth[k].reshape(-1)
    point = posterior.kind == "point"
    return [
        {"feature": j, "truth": None if truth is None else float(truth[j]), "estimate": float(v),
         "low": None if point else float(low[j]), "high": None if point else float(high[j])}
        for j, v in enumerate(mode)
    ]  # fmt: skip


def _made(caption: str, image: np.ndarray, number: int, words: str) -> Picture:
    return Picture(caption, png(image), f"Example {number}: {words}, as the attack found it")


def _near(image: np.ndarray, truth: np.ndarray | None, k: int) -> str:
    return "" if truth is None else f", {metrics.psnr(image[None], truth[k : k + 1])[0]:.1f} dB"


def _heat(values: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return np.asarray(colormaps["magma"](values))[..., :3]
