"""The two modes of a network, which BatchNorm and dropout tell apart."""

from __future__ import annotations

from typing import Literal

Mode = Literal["eval", "train"]
