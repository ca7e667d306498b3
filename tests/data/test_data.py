"""Data: what is attacked and what a prior learns from never meet, and files become the pixels they hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import pictures, write
from PIL import Image

from pplleak import data
from pplleak.errors import BadInput


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


def test_the_datasets_are_listed() -> None:
    assert list(data.names()) == ["adult", "breast_cancer", "cifar10", "digits", "mnist", "wine"]
    assert all(data.names().values())


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


# -- files as people have them ---------------------------------------------------------------------------------------


def test_sixteen_bit_pixels_are_of_their_own_range(tmp_path: Path) -> None:
    pixels = np.array([[0, 16384, 32768], [49152, 65535, 1]], dtype=np.uint16)
    for name in ("0.png", "1.tif"):
        Image.fromarray(pixels).save(tmp_path / name)
    images = data.private(str(tmp_path))
    assert images.input_shape == (1, 2, 3)
    for x in images.x:
        assert torch.equal(x[0], torch.from_numpy(pixels.astype(np.float32)) / 65535)


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "0.tif")
    with pytest.raises(BadInput, match=r"0\.tif has 32-bit pixels"):
        data.private(str(tmp_path))


@pytest.mark.parametrize("grey", [True, False])
def test_what_is_transparent_lies_on_white(grey: bool, tmp_path: Path) -> None:
    colours = pictures(1, 4, 4)[0] if grey else pictures(1, 4, 4, 3)[0]
    alpha = np.zeros((4, 4), dtype=np.uint8)
    alpha[:, 2:] = 255
    Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / "0.png")
    x = data.private(str(tmp_path)).x[0]
    assert len(x) == (1 if grey else 3)
    assert (x[:, :, :2] == 1).all()
    expected = torch.from_numpy(colours.reshape(4, 4, -1)).movedim(-1, 0).float() / 255
    assert torch.equal(x[:, :, 2:], expected[:, :, 2:])


def test_a_transparent_colour_of_a_palette_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "0.png", transparency=0)
    x = data.private(str(tmp_path)).x[0] * 255
    assert x[:, 0].T.round().tolist() == [[255, 255, 255], [40, 50, 60]]


def test_hidden_files_and_folders_are_passed_over(folder: Path, tmp_path: Path) -> None:
    before = data.private(str(folder)).x
    for place in ("test/.ipynb_checkpoints", "test/cat/.ipynb_checkpoints"):
        write(folder / place / "0-checkpoint.png", pictures(1, 5, 6, 3, seed=9)[0])
    (folder / "test" / "cat" / "._0.png").write_bytes(b"what a Mac leaves behind")
    data._load.cache_clear()
    after = data.private(str(folder))
    assert after.classes == ("cat", "dog")
    assert torch.equal(after.x, before)
    flat = tmp_path / "flat"
    write(flat / "0.png", pictures(1, 4, 4)[0])
    write(flat / ".thumbnails" / "0.png", pictures(1, 2, 2)[0])
    assert len(data.private(str(flat))) == 1


def test_images_beside_a_folder_are_refused(folder: Path) -> None:
    write(folder / "test" / "stray.png", pictures(1, 5, 6, 3)[0])
    with pytest.raises(BadInput, match=r"images beside the folder cat, stray\.png for example") as caught:
        data.private(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", [".", "test"])
def test_labels_count_in_the_classes_of_the_training_half(folder: Path, inside: str) -> None:
    shutil.rmtree(folder / "test" / "cat")
    images = data.private(str(folder / inside))
    assert images.classes == ("cat", "dog")
    assert images.y.tolist() == [1, 1]


def test_a_class_that_was_not_trained_on_is_refused(folder: Path) -> None:
    write(folder / "test" / "emu" / "0.png", pictures(1, 5, 6, 3)[0])
    with pytest.raises(BadInput, match="the class emu, which the training half does not have"):
        data.private(str(folder))


def test_images_in_subfolders_of_a_class_are_of_that_class(folder: Path) -> None:
    write(folder / "test" / "cat" / "more" / "9.png", pictures(1, 5, 6, 3, seed=9)[0])
    assert data.private(str(folder)).y.tolist() == [0, 0, 0, 1, 1]


def test_the_digits_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    from pplleak.data import digits

    bunch = load_digits()
    halves = digits.public(Path()), digits.private(Path())
    assert torch.equal(torch.cat([h.x for h in halves]), torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None])
    assert torch.equal(torch.cat([h.y for h in halves]), torch.tensor(bunch.target))
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)  # a file that lies elsewhere
    assert torch.equal(digits.private(Path()).x, halves[1].x)
