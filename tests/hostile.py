"""Good files of every kind that a user may be handed, what reads each, and edits that break them.

`good` makes one of each kind; `READERS` opens one and sees that what it accepts is really valid; `edited` applies the
edits of a fuzzer: bytes flipped, cut, doubled and overwritten, and hostile values in the metadata.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from scenes import build_client

from pplleak import runs
from pplleak.client import weights
from pplleak.data import folder as folder_of_images
from pplleak.data import mnist
from pplleak.density import estimator
from pplleak.density.predictive import Informed, Sketch
from pplleak.federation import files, stored
from pplleak.posterior import Posterior
from pplleak.priors import _store as store
from pplleak.priors import mixture, vae
from pplleak.studies.calibration.draws import LEVELS, QUANTITIES, TWINS, Draw

SHAPE, CLASSES = (1, 2, 2), 3
COLUMNS = {"index": int, "psnr": float, "good": bool, "note": str | None}
PICTURES = ("png", "bmp", "ppm", "pgm", "tif", "jpg", "webp")
# values that broke a reader once, as JSON writes them
HOSTILE = (
    "null", "true", "-1", "0", "1e400", "1e-300", "NaN", "Infinity", "9" * 5000, "-" + "9" * 5000, str(2**63),
    '"' + "x" * 100_000 + '"', '"\\u001b[31m"', '"[/x]"', '"evil.py:"', '"../evil"', "[" * 5000 + "]" * 5000, "{}",
    '{"a":' * 3000 + "1" + "}" * 3000, "[5000000]", "[-1]", "[1.5]", "[null]", '["a"]', "[999999, 999999]", "[[1]]",
    '{"name": "gaussian", "settings": {"sigma": 1e-300}}', '{"name": "aggregated", "settings": {"clients": 0}}',
    '{"name": 3, "settings": {}}', '{"name": "topk", "settings": {"rate": "NaN"}}', '{"lr": 1, "steps": 1000000000}',
    '{"depth": 1000000}', '{"widths": [1000000000000]}', '{"widths": "abc"}', "\ud800", "{", "", "1 2", "'",
)  # fmt: skip
EXTREMES = (
    b"\0", b"\xff", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"99999", b"-1", b"nan", b"{", b"[" * 64,
)  # fmt: skip


def client() -> Any:
    return build_client("mlp", {"widths": (4,)}, SHAPE, CLASSES)


def learnt() -> estimator.Estimator:
    """An estimator of three latents from six entries, that has learnt nothing."""
    torch.manual_seed(0)
    sketch = Sketch(torch.rand(6), torch.rand(6, 2), torch.ones(2))
    return estimator.untrained(sketch, Informed(torch.eye(3), 2, 0.1), torch.rand(9, 3), torch.rand(9, 2), 4, "m")


def good(folder: Path) -> dict[str, bytes]:
    """The bytes of a good file of each kind."""
    torch.manual_seed(0)
    own, images = client(), torch.rand(40, *SHAPE)
    made = {"checkpoint": save(own.network.state_dict(), {"defence": ""})}
    files.write(
        folder / "o", {n: torch.rand(s) for n, s in own.layers.items()}, input_shape=SHAPE, num_classes=CLASSES,
        network="mlp:widths=(4,)", parameters=weights.state(own.network), protection="gaussian:sigma=0.1", labels=[1],
    )  # fmt: skip
    made["observation"] = (folder / "o").read_bytes()
    store.save(folder / "m", "mixture", mixture.fit(images, components=2, rank=2), {"images": 40, "data": "digits"})
    encoder, decoder = vae.perceptrons(4, 2, 3)
    store.save(folder / "v", "vae", vae.VAE(encoder, decoder, torch.full((4,), 0.1), SHAPE), {"settings": {}})
    made |= {"mixture": (folder / "m").read_bytes(), "vae": (folder / "v").read_bytes()}
    estimator.save(learnt(), folder / "q")
    made["estimator"] = (folder / "q").read_bytes()
    for kind in PICTURES:
        packed = io.BytesIO()
        pixels = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
        (pixels.convert("L") if kind == "pgm" else pixels).save(
            packed, {"jpg": "JPEG", "pgm": "PPM", "tif": "TIFF"}.get(kind, kind)
        )
        made[kind] = packed.getvalue()
    made["pfm"] = b"Pf\n8 8\n-1.0\n" + np.zeros(64, "<f4").tobytes()
    idx = struct.pack(">4B3I", 0, 0, 8, 3, 3, 8, 8) + bytes(range(192))
    made |= {"idx": idx, "idx.gz": gzip.compress(idx, mtime=0)}
    shape = len(TWINS), len(QUANTITIES) + 4
    Draw(np.ones(shape, np.int16), 99, np.full((len(TWINS), len(LEVELS)), 0.5), *[0.5] * 6, True, 1.0).save(
        folder / "d"
    )
    made["draw"] = (folder / "d").read_bytes()
    runs.Rows(folder / "r", COLUMNS, ("index",)).add([{"index": k, "psnr": k / 3, "good": True} for k in range(3)])
    runs.json(folder / "s", {"settings": {"data": "digits", "seed": 0, "widths": [4]}})
    x = np.random.default_rng(0).random((2, 5, 1, *SHAPE), np.float32)
    Posterior(x=x, y=np.zeros((2, 5, 1), np.int64), mode=x[0, 0], kind="sampler", attrs={"model": "dlg"}).save(
        folder / "n"
    )
    return made | {
        "rows": (folder / "r").read_bytes(),
        "settings": (folder / "s").read_bytes(),
        "posterior": (folder / "n").read_bytes(),
    }


# -- readers: each accepts only what is really valid -------------------------------------------------------------------


def _observation(path: Path) -> None:
    made = stored.load(path, public=torch.rand(4, *SHAPE))
    assert made.g.isfinite().all() and made.g.shape == (made.client.update_size,) and made.batch_size >= 1
    assert made.sigma is None or 1e-30 <= made.sigma <= 1e30
    assert made.labels is None or ((made.labels >= 0).all() and (made.labels < made.client.num_classes).all())


def _checkpoint(path: Path) -> None:
    made = build_client("mlp", {"widths": (4,)}, SHAPE, CLASSES, checkpoint=path)
    assert all(p.isfinite().all() for p in made.network.parameters())


def _prior(path: Path) -> None:
    stored = store.load(path)
    drawn = stored.prior().draw(3)
    assert drawn.isfinite().all() and drawn.abs().max() < 1e4


def _estimator(path: Path) -> None:
    z, log_det = estimator.load(path, "m", torch.ones(6), 3).decode(torch.rand(5, 3), torch.rand(6))
    assert z.shape == (5, 3) and log_det.shape == (5,)  # whose densities are those that it says: tests/inference


def _picture(path: Path) -> None:
    read = folder_of_images._pixels(path)
    assert read.dim() == 3 and bool(((read >= 0) & (read <= 1)).all()) and read.numel() < 1e8


def _idx(path: Path) -> None:
    raw = path.parent / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for old in raw.iterdir():
        old.unlink()
    end = ".gz" if path.suffix == ".gz" else ""
    (raw / f"t10k-images-idx3-ubyte{end}").write_bytes(path.read_bytes())
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 3) + bytes(3))
    read = mnist.private(path.parent)
    assert len(read.x) == len(read.y) == 3 and read.x.dim() == 4


def _draw(path: Path) -> None:
    read = Draw.load(path)
    assert read.ranks.max() <= 99 and read.inside.shape == (len(TWINS), len(LEVELS))


def _rows(path: Path) -> None:
    for row in runs.Rows(path, COLUMNS, ("index",)).read():
        assert isinstance(row["index"], int) and isinstance(row["psnr"], float) and isinstance(row["good"], bool)


def _settings(path: Path) -> None:
    runs.settle(path, {"data": "digits", "seed": 0, "widths": [4]}, under="settings")


def _posterior(path: Path) -> None:
    read = Posterior.load(path)
    assert read.x.ndim >= 3 and read.mode.shape == read.x.shape[2:]


READERS: dict[str, Callable[[Path], None]] = {
    "observation": _observation, "checkpoint": _checkpoint, "mixture": _prior, "vae": _prior,
    "estimator": _estimator,
    **dict.fromkeys((*PICTURES, "pfm"), _picture), "idx": _idx, "idx.gz": _idx, "draw": _draw, "rows": _rows,
    "settings": _settings, "posterior": _posterior,
}  # fmt: skip
METADATA = ("observation", "mixture", "vae", "estimator", "checkpoint")


# -- edits -------------------------------------------------------------------------------------------------------------


def edited(source: bytes, seed: int) -> bytes:
    """A few edits of a file's bytes, more of them near its beginning, where its header is."""
    chance, made = random.Random(seed), bytearray(source)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = int(len(made) * chance.random() ** 3)
        match chance.randrange(6):
            case 0 if made:
                made[min(at, len(made) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                del made[at:]
            case 2:
                del made[at : at + chance.randrange(1, 9)]
            case 3:
                extreme = chance.choice(EXTREMES)
                made[at : at + len(extreme)] = extreme
            case 4:
                made[at:at] = made[at : at + chance.randrange(1, 65)]
            case 5:
                made[at:at] = chance.choice(EXTREMES)
    return bytes(made)


def mistold(source: Path, target: Path, seed: int) -> None:
    """A safetensors file with a hostile value in its metadata, or tensors of another kind."""
    chance = random.Random(seed)
    with safe_open(source, "pt") as f:
        meta, tensors = dict(f.metadata()), {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118 (not a dict)
    if chance.random() < 0.7:
        value = chance.choice(HOSTILE)
        inner = {k: json.loads(v) for k, v in meta.items() if v[:1] == "{"}
        key = chance.choice(sorted(meta))
        if key in inner and inner[key] and chance.random() < 0.5:  # inside, as it would be written
            name = chance.choice(sorted(inner[key]))
            rest = {k: v for k, v in inner[key].items() if k != name}
            value = json.dumps(rest)[:-1] + (", " if rest else "") + f'"{name}": {value}}}'
        meta[key] = value.encode(errors="replace").decode()
    else:
        name = chance.choice(sorted(tensors))
        t = tensors[name]
        tensors[name] = chance.choice([
            t * float("nan"), t * 1e38, -t, t * 0, t.long(), t.half(), t.to(torch.float8_e5m2), t.to(torch.complex64),
            t[:1], t.double() * 1e300, t.reshape(-1), torch.full_like(t, 1e30), t.new_zeros(0), t[None],
        ]).contiguous()  # fmt: skip
        if chance.random() < 0.2:
            tensors["\x1b[31m" + name] = tensors.pop(name)
    target.write_bytes(save(tensors, meta))
