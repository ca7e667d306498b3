"""Images of a prior, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Tensor


def picture(rows: dict[str, Tensor]) -> Figure:
    """One row of images a label: (N, channels, rows, columns) each, clipped to [0, 1] for the eye."""
    from matplotlib.figure import Figure

    from pplleak.studies.attack import report

    count = max(len(images) for images in rows.values())
    figure = Figure(figsize=(0.55 * count + 0.2, 0.8 * len(rows) + 0.1))
    for k, (label, images) in enumerate(rows.items()):
        top = 1 - (k + 0.30) / len(rows)
        figure.text(0.01, top + 0.04 / len(rows), label, fontsize=8, color=report.INK)
        axes = figure.add_axes((0.01, top - 0.66 / len(rows), 0.98, 0.66 / len(rows)))
        axes.set_axis_off()
        axes.imshow(_strip(images), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    return figure


def _strip(images: Tensor) -> np.ndarray:
    """Images side by side, a white pixel between them."""
    import torch

    x = images.detach().double().clamp(0, 1)
    if x.dim() != 4:
        x = x.reshape(len(x), 1, 1, -1)
    x = torch.nn.functional.pad(x, (0, 1), value=1.0)
    strip = torch.cat(list(x), -1).movedim(0, -1).numpy()
    return strip if strip.shape[-1] == 3 else strip.mean(-1)
