"""Fitted priors as files: written by `pplleak prior fit`, found again by name.

A file is safetensors, so reading it runs no code: the prior's tensors, and metadata (JSON strings) that say its kind,
the images' shape, the settings of the fit, the data and the held-out log-likelihood.

NAME means ./priors/NAME.safetensors; anything that ends in .safetensors is a path. Where a model names no prior, one
is fitted to the reference images with the default settings, once: it is kept under their fingerprint in
$PPLLEAK_CACHE (default ~/.cache/pplleak).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pplleak import data, folders, reading, runs
from pplleak.errors import BadInput, printable, unknown
from pplleak.priors._fitting import Kept
from pplleak.priors._labelled import labels_of
from pplleak.progress import bar
from pplleak.tensors import read as read_tensors

FORMAT = "pplleak-prior-1"
FOLDER = Path("priors")
FAR = 1e3  # a pixel of a draw lies nearer to [0, 1]: a broad prior's do by far, and those of a broken scale do not


@dataclass(frozen=True)
class _Metadata:
    """The metadata of a file: what each has to be."""

    kind: str
    input_shape: list[int]
    about: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Stored:
    """A prior file as read; `about` holds the settings, the data and the held-out log-likelihood."""

    kind: str
    input_shape: tuple[int, ...]
    tensors: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)

    def prior(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Any:
        """The prior itself, in precision `dtype` on `device`."""
        tensors = {n: t.to(device) for n, t in self.tensors.items()}
        with torch.random.fork_rng(devices=[]):  # networks are built at random before they are filled
            return _module(self.kind).restore(tensors, self.input_shape, dtype)


def kinds() -> dict[str, str]:
    """The priors that are trained and kept in files, with their files' first lines: those that define `fit`."""
    return folders.names(Path(__file__).parent, "fit")


def _module(kind: str) -> Any:
    return folders.load("pplleak.priors", "prior", kind, "fit")


def fitter(kind: str) -> Any:
    """`fit(images, *, …settings)` of a kind; raises BadInput for one that is not there."""
    return _module(kind).fit


def fitted(kind: str, images: Tensor, labels: Tensor | None = None, kept: Kept | None = None, **settings: Any) -> Any:
    """A prior of a kind fitted to images, and to their labels where it is one of each class, going on from the state
    that `kept` tells of, where the kind keeps any."""
    fit, told = fitter(kind), {"labels": labels, "kept": kept}
    return fit(images, **settings, **{n: v for n, v in told.items() if n in inspect.signature(fit).parameters})


def save(path: Path, kind: str, fitted: Any, about: dict[str, Any]) -> None:
    """Write a fitted prior, whole or not at all."""
    metadata = {"format": FORMAT, "kind": kind, "input_shape": list(fitted.input_shape), "about": about}
    tensors = {n: t.float() for n, t in fitted.tensors().items()}
    runs.tensors(path, tensors, {k: json.dumps(v) for k, v in metadata.items()})


def load(path: str | Path) -> Stored:
    """Read a prior file without running anything in it.

    Raises:
        BadInput: not a readable safetensors file, no prior in it, NaN, tensors that do not fit their kind, or a prior
            whose draws are no images.
    """
    path = Path(path)
    tensors, raw = read_tensors(path)
    if raw.get("format") != json.dumps(FORMAT):
        raise BadInput(f"{printable(path)} holds no prior: write one with `pplleak prior fit`")
    where = f"{printable(path)}: its metadata"
    metadata = reading.metadata(raw, _Metadata, where)
    shape = tuple(metadata.input_shape)
    if metadata.kind not in kinds():
        raise unknown("prior", metadata.kind, kinds(), f"{printable(path)} holds no prior that this version fits.")
    if not shape or not all(0 < n < 100_000 for n in shape) or math.prod(shape) > 10_000_000:
        raise BadInput(f"{where} holds impossible sizes: {printable(shape)}")
    if counters := [n for n, t in tensors.items() if not t.is_floating_point()]:
        raise BadInput(f"{printable(path)}: '{printable(counters[0])}' does not hold floating-point numbers")
    stored = Stored(metadata.kind, shape, tensors, metadata.about)
    try:
        _require_images(stored.prior(), shape)
    except (BadInput, LookupError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        what = printable(error)
        raise BadInput(f"{printable(path)} is no {stored.kind} prior for images of shape {shape}: {what}") from error
    return stored


@torch.no_grad()
def _require_images(prior: Any, shape: tuple[int, ...]) -> None:
    """Raise BadInput for a prior whose draws are no images, pixels of about 0 to 1, or which gives them no density."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = prior.draw(2) if hasattr(prior, "draw") else torch.full((2, *shape), 0.5)  # known up to its normaliser
        density = prior.log_prob(drawn)
    if drawn.shape != (2, *shape) or not bool(drawn.isfinite().all()) or float(drawn.abs().max()) > FAR:
        raise BadInput("what it draws are no images, whose pixels lie between 0 and 1")
    if not bool(density.isfinite().all()):
        raise BadInput("its density at its own draws is no number")


def locate(name: str) -> Path:
    """The file behind a name or a path; raises BadInput with the near names where there is none."""
    if name.endswith(".safetensors"):
        return Path(name)
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        known = [p.stem for p in FOLDER.glob("*.safetensors")]
        if not known:
            raise BadInput(f"no prior '{name}': {FOLDER}/ holds none; fit one with `pplleak prior fit`")
        raise unknown("prior", name, known, "Or give a path ending in .safetensors, or fit one: `pplleak prior fit`.")
    return path


@lru_cache(maxsize=8)  # models call this at every trace
def trained(
    kind: str,
    name: str,
    reference: str | Tensor,
    input_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
    labels: Tensor | None = None,
) -> Any:
    """A prior as a model asks for it: the file `name`, or, where it is empty, one fitted to the reference images.

    Raises:
        BadInput: the file is another kind's, or for images of another shape.
    """
    if name:
        path = locate(name)
        stored = load(path)
        if stored.kind != kind:
            raise BadInput(f"{path} holds a {stored.kind} prior, and this model needs a {kind} prior")
        if stored.input_shape != tuple(input_shape):
            raise BadInput(f"the prior {path} was fitted to images of shape {stored.input_shape}, the client's images "
                           f"have {tuple(input_shape)}: fit another with `pplleak prior fit {kind}`")  # fmt: skip
        return stored.prior(dtype, device)
    images = data.reference(reference, input_shape)
    settings = {n: p.default for n, p in inspect.signature(fitter(kind)).parameters.items() if n in _written(kind)}
    if "labels" in inspect.signature(fitter(kind)).parameters:
        labels = labels_of(kind, reference, labels)
    mark = fingerprint(images, settings, labels)
    path = cache() / f"{kind}-{mark}.safetensors"
    if not path.is_file():
        runs.prepare(path.parent)
        print(f"pplleak: fitting a {kind} prior to {len(images)} images, once: kept as {path}", file=sys.stderr)
        kept = Kept(path, mark)
        save(
            path, kind, fitted(kind, images, labels, kept, progress=bar), {"settings": settings, "images": len(images)}
        )
        kept.clear()
    return load(path).prior(dtype, device)


def _written(kind: str) -> set[str]:
    """The settings of a fit."""
    parameters = inspect.signature(fitter(kind)).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("progress", "kept")}


def cache() -> Path:
    """Where priors are kept that were fitted on the fly."""
    return Path(os.environ.get("PPLLEAK_CACHE", "~/.cache/pplleak")).expanduser()


def fingerprint(images: Tensor, settings: dict[str, Any], labels: Tensor | None = None) -> str:
    """Of what a fit depends on; labels: where it does."""
    digest = hashlib.sha256(json.dumps([FORMAT, list(images.shape), settings], sort_keys=True).encode())
    digest.update(images.detach().float().contiguous().numpy().tobytes())
    if labels is not None:
        digest.update(labels.cpu().long().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def split(images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Nine tenths of the images to fit to, and the rest (at most 1000) to hold out, drawn by `seed`."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out = min(1000, max(1, len(images) // 10))
    return images[order[held_out:]], images[order[:held_out]]
