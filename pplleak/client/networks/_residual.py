"""What residual networks share."""

from __future__ import annotations

from typing import Literal

BatchNorm = Literal["eval", "train"]
