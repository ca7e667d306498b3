"""Real images to attack, and public ones to learn a prior from.

Every dataset has two halves that never meet: the *private* one holds the images that are attacked (`--index`), the
*public* one what an adversary could have collected beforehand.

| spec      | private                                   | public                                      |
| --------- | ----------------------------------------- | ------------------------------------------- |
| `digits`  | the last 297 of scikit-learn's 8x8 digits | the first 1500                              |
| `mnist`   | MNIST's test images under `--data-root`   | its training images                         |
| `cifar10` | `ROOT/cifar10/test`, a folder a class     | `ROOT/cifar10/train`                        |
| a FOLDER  | its images (`FOLDER/test` if there)       | `FOLDER/train`, else `../train`, else the   |
|           |                                           | same images without the attacked one        |
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pplleak.errors import BadInput, unknown

NAMES = ("digits", "mnist", "cifar10")
# scikit-learn and torchvision are imported where they are used: each takes two seconds, and most runs need one.


@dataclass(frozen=True, eq=False)
class Images:
    """x (N, channels, rows, cols) in [0, 1], float32; y (N,); classes: their names."""

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def batch(self, index: int, size: int = 1) -> tuple[Tensor, Tensor]:
        """Images index … index + size − 1 and their labels; raises BadInput where there are not so many."""
        if not 0 <= index <= len(self) - size:
            raise BadInput(f"index {index} is out of range: the data hold images 0 to {len(self) - 1}"
                           + (f", and the batch takes {size}" if size > 1 else ""))  # fmt: skip
        return self.x[index : index + size], self.y[index : index + size]


def private(spec: str, root: str | Path | None = None) -> Images:
    """The images that are attacked."""
    return _load(spec, str(root or _default_root()), "private")


def public(spec: str, root: str | Path | None = None, without: range | None = None) -> Images:
    """The images an adversary may learn from; `without` leaves out the attacked ones where the halves are one."""
    images = _load(spec, str(root or _default_root()), "public")
    if without is None or spec in NAMES or _public_folder(Path(spec)) != _private_folder(Path(spec)):
        return images
    keep = torch.ones(len(images), dtype=torch.bool)
    keep[without.start : without.stop] = False
    return Images(images.x[keep], images.y[keep], images.classes)


def reference(spec: str | Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """The public images a prior is fitted to, (N, *input_shape); raises BadInput where the shape is another."""
    images = spec if isinstance(spec, Tensor) else public(spec).x
    if tuple(images.shape[1:]) != tuple(input_shape):
        name = "the reference images" if isinstance(spec, Tensor) else f"the reference '{spec}'"
        raise BadInput(f"{name} have shape {tuple(images.shape[1:])}, the client's images {tuple(input_shape)}: "
                       "name images like the client's with --model.reference")  # fmt: skip
    return images


def _default_root() -> str:
    return os.environ.get("PPLLEAK_DATA_ROOT", "data")


@lru_cache(maxsize=8)
def _load(spec: str, root: str, half: str) -> Images:
    if spec == "digits":
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)
        y = torch.tensor(bunch.target, dtype=torch.long)
        part = slice(1500, None) if half == "private" else slice(1500)
        return Images(x[part], y[part], tuple(str(d) for d in range(10)))
    if spec == "mnist":
        return _mnist(root, train=half == "public")
    if spec == "cifar10":
        spec = str(Path(root) / "cifar10")
        if not Path(spec).is_dir():
            raise BadInput(f"no CIFAR-10 at {spec}: put folders of images at {spec}/train/CLASS and {spec}/test/CLASS, "
                           "or point --data-root elsewhere")  # fmt: skip
    folder = Path(spec)
    if not folder.is_dir():
        raise unknown("data", spec, NAMES, "Or give a folder of images.")
    return _folder(_private_folder(folder) if half == "private" else _public_folder(folder))


def _private_folder(folder: Path) -> Path:
    return folder / "test" if (folder / "test").is_dir() else folder


def _public_folder(folder: Path) -> Path:
    if (folder / "train").is_dir():
        return folder / "train"
    sibling = folder.resolve().parent / "train"
    return sibling if folder.resolve().name == "test" and sibling.is_dir() else folder


def _mnist(root: str, train: bool) -> Images:
    from torchvision.datasets import MNIST

    try:
        dataset = MNIST(root, train=train, download=False)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise BadInput(f"no readable MNIST under {root}/MNIST/raw: point --data-root at the folder that holds "
                       "MNIST/raw (nothing is downloaded)") from error  # fmt: skip
    return Images(dataset.data.unsqueeze(1).float() / 255, dataset.targets, tuple(str(d) for d in range(10)))


def _folder(folder: Path) -> Images:
    """A folder of class folders (torchvision's ImageFolder), or a flat folder of images (all of class 0)."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, ImageFolder

    if any(p.is_dir() for p in folder.iterdir()):
        try:
            listed = ImageFolder(str(folder))
        except FileNotFoundError as error:
            raise BadInput(f"{folder}: {str(error).splitlines()[0]}") from error
        samples, classes = listed.samples, tuple(listed.classes)
    else:
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMG_EXTENSIONS)
        samples, classes = [(str(p), 0) for p in files], ("image",)
    if not samples:
        raise BadInput(f"{folder} holds no images")
    pixels = [_pixels(path) for path, _ in samples]
    shapes = sorted({p.shape for p in pixels})
    if len(shapes) > 1:
        raise BadInput(f"the images of {folder} differ in shape, {shapes[0]} and {shapes[1]} for example: resize them")
    x = torch.from_numpy(np.stack(pixels)).movedim(-1, 1).float() / 255
    return Images(x, torch.tensor([label for _, label in samples]), classes)


def _pixels(path: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise BadInput(f"cannot read the image {path}: {error}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels
