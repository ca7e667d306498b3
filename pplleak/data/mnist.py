"""MNIST from its own files, ROOT/MNIST/raw: its test images are private, its training images public.

The files are those of LeCun et al. (idx), as they are or compressed (.gz): a magic number that holds the type and the
number of sizes, the sizes, and the bytes. Nothing is downloaded, and nothing in them is run.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from pplleak import memory, reading
from pplleak.data.images import Images
from pplleak.errors import BadInput

CLASSES = tuple(str(d) for d in range(10))
UBYTE = 0x08
CHUNK = 1 << 20
LARGEST = 1 << 32  # bytes of a file: the largest in this format has a fifth of them
DEFLATED = 1032  # the most that one byte of a deflated file can hold


def private(root: Path) -> Images:
    """The test images."""
    return _half(root, "t10k")


def public(root: Path) -> Images:
    """The training images."""
    return _half(root, "train")


def _half(root: Path, half: str) -> Images:
    raw = root / "MNIST" / "raw"
    images_file, pixels = _read(raw, f"{half}-images-idx3-ubyte", 3)
    labels_file, labels = _read(raw, f"{half}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels):
        raise BadInput(f"{images_file} holds {len(pixels)} images, {labels_file} {len(labels)} labels")
    if int(labels.max()) >= len(CLASSES):
        raise BadInput(f"{labels_file} holds the label {int(labels.max())}, and digits are 0 to 9")
    return Images(pixels.unsqueeze(1).float() / 255, labels.long(), CLASSES)


def _read(raw: Path, name: str, dimensions: int) -> tuple[Path, Tensor]:
    """The file and its bytes in the shape that it says, uint8; a shape that is not the file's is not allocated."""
    path = next((p for p in (raw / name, raw / f"{name}.gz") if os.path.isfile(p)), None)
    if path is None:
        raise BadInput(f"no readable MNIST under {raw}: it has no {name}; the data root is the folder that holds "
                       "MNIST/raw, and nothing is downloaded")  # fmt: skip
    size = path.stat().st_size
    compressed = path.suffix == ".gz"
    reading.regular(path, LARGEST)
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            shape = _shape(file, path, dimensions)
            count = math.prod(shape)
            header = 4 + 4 * dimensions
            whole = header + count <= size * DEFLATED if compressed else header + count == size
            if whole:
                memory.require(6 * count, f"{path}, of the shape {shape},", "take a machine with more memory")
            held = bytearray()
            while whole and len(held) <= count and (chunk := file.read(min(CHUNK, count + 1 - len(held)))):
                held += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"no readable MNIST: {path}: {error}") from error
    if not whole or len(held) != count:
        what = f"more or fewer than the {count} bytes" if compressed else f"{size - header} bytes, not the {count}"
        raise BadInput(f"{path} holds {what} of its shape {shape}: it is cut short, or another file")
    return path, torch.frombuffer(held, dtype=torch.uint8).reshape(shape)


def _shape(file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int) -> tuple[int, ...]:
    header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:2] != b"\0\0" or header[3] != dimensions:
        raise BadInput(
            f"{path} is no idx file of {dimensions} sizes: its first bytes are {header[:4].hex(' ') or 'missing'}"
        )
    if header[2] != UBYTE:
        raise BadInput(f"{path} holds numbers of the idx type 0x{header[2]:02x}, not bytes (0x08)")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if not all(shape):
        raise BadInput(f"{path} holds nothing: its shape is {shape}")
    return shape
