"""MNIST: read from the raw files as they are published, and a file that lies is refused before memory is taken."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import idx, mnist, pictures

from pplleak import data
from pplleak.errors import BadInput


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return mnist(tmp_path)


def zipped(folder: Path) -> None:
    for file in list(folder.iterdir()):
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_is_read_from_its_raw_files_and_never_downloaded(raw: Path, tmp_path: Path, compressed: bool) -> None:
    if compressed:
        zipped(raw)
    private, public = data.private("mnist", tmp_path), data.public("mnist", tmp_path)
    assert (len(private), len(public)) == (2, 3)
    assert torch.equal(private.x, torch.tensor(pictures(2, 28, 28, seed=2)).unsqueeze(1).float() / 255)
    assert private.y.tolist() == [0, 1]
    assert private.y.dtype == torch.long


def test_a_pickle_beside_the_raw_files_is_not_opened(raw: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "MNIST" / "processed").mkdir()
    for half in ("training", "test"):
        (tmp_path / "MNIST" / "processed" / f"{half}.pt").write_bytes(pickle.dumps(Trap()))
    data.private("mnist", tmp_path)
    assert not (tmp_path / "sprung").exists()


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
HUGE = (2**32 - 1).to_bytes(4, "big")
LIES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "empty": (IMAGES, lambda b: b"", "no idx file of 3 sizes: its first bytes are missing"),
    "only a header's part": (IMAGES, lambda b: b[:9], "no idx file of 3 sizes"),
    "another magic": (IMAGES, lambda b: b"\x80\x02" + b[2:], "no idx file of 3 sizes: its first bytes are 80 02 08 03"),
    "labels as images": (IMAGES, lambda b: idx(np.arange(2, dtype=np.uint8)), "no idx file of 3 sizes"),
    "images as labels": (LABELS, lambda b: idx(pictures(2, 28, 28)), "no idx file of 1 sizes"),
    "floats": (IMAGES, lambda b: b"\0\0\x0d\x03" + b[4:], "numbers of the idx type 0x0d"),
    "cut short": (IMAGES, lambda b: b[:-1], "1567 bytes, not the 1568"),
    "too long": (IMAGES, lambda b: b + b"\0", "1569 bytes, not the 1568"),
    "more images than bytes": (IMAGES, lambda b: b[:4] + HUGE + b[8:], "1568 bytes, not the"),
    "every size huge": (IMAGES, lambda b: b[:4] + 3 * HUGE + b[16:], "1568 bytes, not the"),
    "more labels than bytes": (LABELS, lambda b: b[:4] + HUGE + b[8:], "2 bytes, not the 4294967295"),
    "no images": (IMAGES, lambda b: b[:4] + bytes(4) + b[8:], "holds nothing"),
    "no columns": (IMAGES, lambda b: b[:12] + bytes(4), "holds nothing"),
    "a label fewer": (LABELS, lambda b: idx(np.zeros(1, np.uint8)), "holds 2 images, .* 1 labels"),
    "a label of no class": (LABELS, lambda b: idx(np.array([0, 10], np.uint8)), "the label 10, and digits are 0 to 9"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_raw_file_that_lies_is_refused_before_anything_is_allocated(lie: str, raw: Path, tmp_path: Path) -> None:
    name, change, said = LIES[lie]
    (raw / name).write_bytes(change((raw / name).read_bytes()))
    with pytest.raises(BadInput, match=said) as caught:
        data.private("mnist", tmp_path)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert len(data.public("mnist", tmp_path)) == 3  # the other half is whole


@pytest.mark.parametrize(
    "lie", [n for n in LIES if n not in ("cut short", "too long") and "bytes, not" not in LIES[n][2]]
)
def test_a_compressed_file_that_lies_is_refused_as_well(lie: str, raw: Path, tmp_path: Path) -> None:
    name, change, said = LIES[lie]
    (raw / name).write_bytes(change((raw / name).read_bytes()))
    zipped(raw)
    with pytest.raises(BadInput, match=said):
        data.private("mnist", tmp_path)


@pytest.mark.parametrize("lie", [n for n in LIES if "bytes, not" in LIES[n][2]])
def test_a_compressed_file_of_another_size_is_refused(lie: str, raw: Path, tmp_path: Path) -> None:
    name, change, _ = LIES[lie]
    (raw / name).write_bytes(change((raw / name).read_bytes()))
    zipped(raw)
    with pytest.raises(BadInput, match="more or fewer than the") as caught:
        data.private("mnist", tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:40] + b"\xff" * 20 + b[60:], lambda b: b"no gzip"])
def test_a_damaged_compressed_file_is_refused(damage: Callable[[bytes], bytes], raw: Path, tmp_path: Path) -> None:
    zipped(raw)
    file = raw / f"{IMAGES}.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BadInput, match="no readable MNIST") as caught:
        data.private("mnist", tmp_path)
    assert "\n" not in str(caught.value)
