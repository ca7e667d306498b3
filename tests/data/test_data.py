"""Data: what is attacked and what a prior learns from never meet, and files become the pixels they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pplleak import data
from pplleak.errors import BadInput


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of two colour images each, in train and in test."""
    for half, seed in (("train", 0), ("test", 1)):
        for k, pixels in enumerate(pictures(4, 5, 6, 3, seed=seed)):
            write(tmp_path / half / ("cat", "dog")[k // 2] / f"{k}.png", pixels)
    return tmp_path


def test_digits_are_whole_normalised_and_split_into_halves_that_never_meet() -> None:
    private, public = data.private("digits"), data.public("digits")
    assert (len(private), len(public)) == (297, 1500)
    assert private.input_shape == public.input_shape == (1, 8, 8)
    for images in (private, public):
        assert images.x.dtype == torch.float32
        assert float(images.x.min()) == 0
        assert float(images.x.max()) == 1
        assert set(images.y.tolist()) == set(range(10))
        assert images.classes == tuple("0123456789")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    both = torch.cat([public.x, private.x])[:, 0]
    assert torch.equal(both * 16, torch.tensor(bunch.images, dtype=torch.float32))
    assert torch.equal(torch.cat([public.y, private.y]), torch.tensor(bunch.target))


def test_a_folders_pixels_and_classes_come_back_bitwise(folder: Path) -> None:
    images = data.private(str(folder))
    assert images.classes == ("cat", "dog")
    assert images.y.tolist() == [0, 0, 1, 1]
    assert images.input_shape == (3, 5, 6)
    expected = torch.tensor(pictures(4, 5, 6, 3, seed=1)).movedim(-1, 1).float() / 255
    assert torch.equal(images.x, expected)


@pytest.mark.parametrize("inside", [".", "test"])
def test_a_folder_with_train_and_test_keeps_them_apart(folder: Path, inside: str) -> None:
    spec = str(folder / inside)
    private, public = data.private(spec), data.public(spec, without=range(0, 4))
    assert torch.equal(public.x, torch.tensor(pictures(4, 5, 6, 3, seed=0)).movedim(-1, 1).float() / 255)
    assert not torch.equal(public.x, private.x)


def test_a_folder_without_halves_leaves_the_attacked_images_out_of_the_public_ones(tmp_path: Path) -> None:
    for k, pixels in enumerate(pictures(5, 4, 4)):
        write(tmp_path / f"{k}.png", pixels)
    private = data.private(str(tmp_path))
    public = data.public(str(tmp_path), without=range(1, 3))
    assert private.input_shape == (1, 4, 4)
    assert private.y.tolist() == [0] * 5
    assert torch.equal(public.x, private.x[[0, 3, 4]])
    assert len(data.public(str(tmp_path))) == 5


def test_cifar10_is_read_from_its_folder_under_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for half, seed in (("train", 0), ("test", 1)):
        write(tmp_path / "cifar10" / half / "cat" / "0.png", pictures(1, 4, 4, 3, seed=seed)[0])
    found = data.private("cifar10", tmp_path)
    assert torch.equal(found.x[0], torch.tensor(pictures(1, 4, 4, 3, seed=1)[0]).movedim(-1, 0).float() / 255)
    monkeypatch.setenv("PPLLEAK_DATA_ROOT", str(tmp_path))
    assert torch.equal(data.private("cifar10").x, found.x)


def test_mnist_is_read_from_its_raw_files_and_never_downloaded(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for half, count in (("train", 3), ("t10k", 2)):
        pixels = pictures(count, 28, 28, seed=count)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{half}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8)
        (raw / f"{half}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, count], dtype=">i4").tobytes() + labels.tobytes()
        )
    private, public = data.private("mnist", tmp_path), data.public("mnist", tmp_path)
    assert (len(private), len(public)) == (2, 3)
    assert torch.equal(private.x, torch.tensor(pictures(2, 28, 28, seed=2)).unsqueeze(1).float() / 255)
    assert private.y.tolist() == [0, 1]


def test_a_batch_is_that_many_images_from_the_index_on() -> None:
    images = data.private("digits")
    x, y = images.batch(295, 2)
    assert torch.equal(x, images.x[295:])
    assert torch.equal(y, images.y[295:])


@pytest.mark.parametrize(("index", "size"), [(-1, 1), (297, 1), (296, 2), (0, 298)])
def test_an_index_out_of_range_says_the_range(index: int, size: int) -> None:
    with pytest.raises(BadInput, match="0 to 296"):
        data.private("digits").batch(index, size)


def test_reference_images_are_the_public_ones_or_a_tensor_of_the_clients_shape() -> None:
    assert torch.equal(data.reference("digits", (1, 8, 8)), data.public("digits").x)
    own = torch.rand(3, 1, 2, 2)
    assert data.reference(own, (1, 2, 2)) is own
    for spec in ("digits", own):
        with pytest.raises(BadInput, match=r"the client's images \(3, 4, 4\)"):
            data.reference(spec, (3, 4, 4))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("digit", "did you mean digits"),
        ("cifar", "did you mean cifar10"),
        ("mnist", "no readable MNIST"),
        ("cifar10", "no CIFAR-10"),
    ],
)
def test_data_that_are_not_there_are_refused_with_what_to_do(spec: str, said: str, tmp_path: Path) -> None:
    for half in (data.private, data.public):
        with pytest.raises(BadInput, match=said):
            half(spec, tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no images"):
        data.private(str(tmp_path))


def test_a_folder_of_empty_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(BadInput, match="cat"):
        data.private(str(tmp_path))


def test_images_of_different_shapes_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "0.png", pictures(1, 4, 4)[0])
    write(tmp_path / "1.png", pictures(1, 4, 5)[0])
    with pytest.raises(BadInput, match="differ in shape"):
        data.private(str(tmp_path))


def test_a_broken_image_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(BadInput, match=r"broken\.png"):
        data.private(str(tmp_path))
