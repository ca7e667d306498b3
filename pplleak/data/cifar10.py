"""CIFAR-10 as folders of images, a folder a class: ROOT/cifar10/test is private, ROOT/cifar10/train public."""

from __future__ import annotations

import os
from pathlib import Path

from pplleak.data import folder
from pplleak.data.images import Images
from pplleak.errors import BadInput


def private(root: Path) -> Images:
    """Its test images."""
    return folder.attacked(_place(root))


def public(root: Path) -> Images:
    """Its training images."""
    return folder.known(_place(root))


def _place(root: Path) -> Path:
    place = root / "cifar10"
    if not os.path.isdir(place):
        raise BadInput(f"no CIFAR-10 at {place}: put folders of images at {place}/train/CLASS and {place}/test/CLASS, "
                       "or take another data root")  # fmt: skip
    return place
