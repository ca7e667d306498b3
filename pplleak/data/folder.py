"""Folders of images: a folder a class, or images side by side (all of one class).

FOLDER/test is private and FOLDER/train public where they are there; so are ../test and ../train of one of them. Without
such halves the images of FOLDER are both. Hidden files and folders (.ipynb_checkpoints) are passed over.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pplleak import memory, reading
from pplleak.data.images import Images
from pplleak.errors import BadInput, printable

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
GREY = {"1", "L", "LA", "La"}
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # what those extensions stand for, and no other decoder
SIDE = 10_000  # pixels
PIXELS = 25_000_000  # of one image: those of a camera, and no header that lies
BYTES = 256 << 20  # of one image's file
PLACES = 20_000  # folders within a class's folder: more are a disk, and not a class


def attacked(folder: Path) -> Images:
    """The private images, labelled by the classes of the public half where that is another folder with classes."""
    with _readable(folder):
        private, public = _private_half(folder), _public_half(folder)
        return _images(private, _classes(public) if public.resolve() != private.resolve() else [])


def known(folder: Path) -> Images:
    """The public images."""
    with _readable(folder):
        return _images(_public_half(folder), [])


def one(folder: Path) -> bool:
    """Whether the private images and the public ones are the same."""
    return _private_half(folder) == _public_half(folder)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """What a system says of a folder (no permission, a loop of links, a name that is too long), in one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: `resolve` in a loop of links
        where = printable(getattr(error, "filename", None) or folder)
        raise BadInput(f"cannot read the images of {printable(folder)}: {where}: {reading.reason(error)}") from error


def _private_half(folder: Path) -> Path:
    return folder / "test" if (folder / "test").is_dir() else folder


def _public_half(folder: Path) -> Path:
    if (folder / "train").is_dir():
        return folder / "train"
    sibling = folder.resolve().parent / "train"
    return sibling if folder.resolve().name == "test" and sibling.is_dir() else folder


def _classes(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def _images(folder: Path, classes: list[str]) -> Images:
    """The images of a folder; `classes` are those that its labels count in, [] for its own."""
    own = _classes(folder)
    beside = sorted(p for p in folder.iterdir() if p.is_file() and _is_image(p.name))
    if own and beside:
        raise BadInput(f"{folder} holds images beside the folder {own[0]}, {beside[0].name} for example: have a folder "
                       "for each class, or no folder")  # fmt: skip
    if not own:
        return _read(folder, beside, [0] * len(beside), ("image",))
    if classes and (strange := sorted(set(own) - set(classes))):
        raise BadInput(f"{folder} has the class {strange[0]}, which the training half does not have: its classes are "
                       f"{', '.join(classes)}")  # fmt: skip
    names = classes or own
    files, labels = [], []
    for name in own:
        inside = _inside(folder / name)
        if not inside:
            raise BadInput(f"the class {name} of {folder} holds no images: put some there, or remove its folder")
        files += inside
        labels += [names.index(name)] * len(inside)
    return _read(folder, files, labels, tuple(names))


def _inside(folder: Path) -> list[Path]:
    """The images of a class, those of its subfolders too."""
    found, places = [], {os.path.realpath(folder)}
    for place, inner, files in os.walk(folder, followlinks=True):
        inner[:] = sorted(i for i in inner if not i.startswith("."))
        real = {i: os.path.realpath(os.path.join(place, i)) for i in inner}
        inner[:] = [i for i in inner if real[i] not in places]  # a link leads back to a folder that has been seen
        places |= set(real.values())
        if len(places) > PLACES:
            raise BadInput(f"{printable(folder)} has more than {PLACES} folders inside it: name a folder of images")
        found += [Path(place, file) for file in files if _is_image(file)]
    return sorted(found, key=lambda file: (file.parent, file.name))


def _read(folder: Path, files: list[Path], labels: list[int], classes: tuple[str, ...]) -> Images:
    if not files:
        raise BadInput(f"{printable(folder)} holds no images")
    first = _pixels(files[0])
    memory.require(
        5 * len(files) * first.numel(), f"{printable(folder)}, {len(files)} images of {tuple(first.shape)},",
        "take fewer or smaller images",
    )  # fmt: skip
    x = torch.empty(len(files), *first.shape)
    for k, file in enumerate(files):
        pixels = _pixels(file) if k else first
        if pixels.shape != first.shape:
            raise BadInput(f"the images of {printable(folder)} differ in shape (channels, rows, columns), "
                           f"{tuple(first.shape)} and {tuple(pixels.shape)} for example: resize them")  # fmt: skip
        x[k] = pixels
    return Images(x, torch.tensor(labels), classes)


def _pixels(path: Path) -> Tensor:
    """An image as (channels, rows, columns) in [0, 1] of its file's own range; what is transparent is on white."""
    reading.regular(path, BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                return _decoded(opened, path)
    except BadInput:
        raise
    except MemoryError as error:
        raise BadInput(f"cannot read the image {printable(path)}: it takes more memory than there is") from error
    except Exception as error:  # a decoder raises what it likes on bytes that lie: two dozen kinds have been seen
        raise BadInput(f"cannot read the image {printable(path)}: {printable(error)}") from error


def _decoded(opened: Image.Image, path: Path) -> Tensor:
    image, (width, height) = opened, opened.size
    if max(width, height) > SIDE or width * height > PIXELS:
        raise BadInput(f"the image {printable(path)} says that it has {width} x {height} pixels, more than {PIXELS} or "
                       f"than {SIDE} on a side: resize it")  # fmt: skip
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PNG"):
        deep = np.array(image).astype(np.float32) / 65535
        return torch.from_numpy(deep)[None]
    if image.mode in ("I", "F"):
        raise BadInput(f"the image {printable(path)} has 32-bit pixels, whose range the file does not say: save it "
                       "with 8 or 16 bits")  # fmt: skip
    grey = image.mode in GREY
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return torch.from_numpy(pixels[..., None] if pixels.ndim == 2 else pixels).movedim(-1, 0).float() / 255
