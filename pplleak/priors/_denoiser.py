"""The network of the prior `diffusion`: a small U-Net that says how an image is unlike a Gaussian's draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

FREQUENCIES = 8  # cosines and sines of the noise level
BLOCKS = 3  # at the lower resolution
UNIT = 4  # rows and columns are padded to a multiple: pixels go by 2 × 2, and are halved once


def as_image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, rows and columns that the network sees of inputs of this shape; rows alone are one channel."""
    one, two, three = (1,) * (3 - len(shape)) + shape
    return one, two, three


class Block(nn.Module):
    """h + conv(silu(conv(silu(h)) + e)), where e tells the noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.level = nn.Linear(2 * FREQUENCIES, width)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        inner = self.first(functional.silu(h)) + self.level(level)[:, :, None, None]
        out: Tensor = h + self.second(functional.silu(inner))
        return out


class Denoiser(nn.Module):
    """Images (N, channels, rows, columns) in the band that the noise is hiding, and what is seen already -> the same.

        band ∘ a(seen, band, t) + b(seen, band, t)

    The product is what photographs need: whether a place is flat or has edges scales what is there to be seen, and a
    sum of small convolutions learns that very slowly. Where a and b are zero, as at the start, the prior is Gaussian.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        units = channels * 4
        self.enter = nn.Conv2d(2 * units, hidden, 3, padding=1)
        self.upper = Block(hidden)
        self.down = nn.Conv2d(hidden, 2 * hidden, 2, stride=2)
        self.lower = nn.ModuleList([Block(2 * hidden) for _ in range(BLOCKS)])
        self.up = nn.ConvTranspose2d(2 * hidden, hidden, 2, stride=2)
        self.last = Block(hidden)
        self.leave = nn.Conv2d(hidden, 2 * units, 3, padding=1)
        for p in self.leave.parameters():
            nn.init.zeros_(p)

    def forward(self, seen: Tensor, band: Tensor, t: Tensor) -> Tensor:
        """t (N,) in [0, 1]: the noise level's logarithm, from the least to the largest."""
        rows, columns = band.shape[-2:]
        margin = (0, -columns % UNIT, 0, -rows % UNIT)
        angle = t[:, None] * math.pi * torch.arange(1, FREQUENCIES + 1, dtype=t.dtype, device=t.device)
        level = torch.cat([angle.cos(), angle.sin()], -1)
        both = functional.pad(torch.cat([seen, band], 1), margin)
        h = self.upper(self.enter(functional.pixel_unshuffle(both, 2)), level)
        low = self.down(h)
        for block in self.lower:
            low = block(low, level)
        h = self.last(h + self.up(low), level)
        out = functional.pixel_shuffle(self.leave(functional.silu(h)), 2)[..., :rows, :columns]
        scale, shift = out.chunk(2, 1)
        return band * scale + shift
