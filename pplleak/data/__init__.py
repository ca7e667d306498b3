"""Real images, rows of a table or sentences to attack, and public ones to learn a prior from. One dataset a file.

``NAME.py`` has the functions `private(root)` and `public(root)`, which return `Images`: nothing else need be written
for a new one. The *private* half holds the images that are attacked, the *public* one what an adversary could have
collected beforehand; they never meet. A path instead of a name is a folder of images (`pplleak.data.folder`), whose
halves may be one: then the attacked images are left out of the public ones; or the file of a table
(`pplleak.data.table`) or of a text (`pplleak.data.text`), with settings or without: FILE.csv:target=COLUMN, FILE.txt.

The data root is the folder that the datasets' own folders lie in: $PPLLEAK_DATA_ROOT, or ./data, where none is given.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from pplleak import folders, programs
from pplleak.data.columns import Columns as Columns
from pplleak.data.images import Images as Images
from pplleak.data.vocabulary import Vocabulary as Vocabulary
from pplleak.errors import BadInput, unknown
from pplleak.settings import Named, require

FOLDER = Path(__file__).parent
TABLES = (".csv", ".tsv", ".data", ".parquet")
TEXTS = (".txt",)


def names() -> dict[str, str]:
    """Every dataset with the first line of its file, read without running it."""
    return folders.names(FOLDER, "private")


def private(spec: str, root: str | Path | None = None) -> Images:
    """The images that are attacked: of a dataset's name, or of a folder."""
    return _load(spec, str(root or _default_root()), "private")


def public(spec: str, root: str | Path | None = None, without: range | None = None) -> Images:
    """The images an adversary may learn from; `without` leaves out the attacked ones where the halves are one."""
    images = _load(spec, str(root or _default_root()), "public")
    whole = images.columns is not None or images.vocabulary is not None  # halves that never meet
    if without is None or whole or spec in names() or not _folder_is_one(spec):
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
                       "name images like the client's as the prior's reference")  # fmt: skip
    return images


def _default_root() -> str:
    return os.environ.get("PPLLEAK_DATA_ROOT", "data")


def _folder_is_one(spec: str) -> bool:
    from pplleak.data import folder  # where it is used: it needs Pillow

    return folder.one(Path(spec))


def _file(named: Named) -> tuple[Images, Images]:
    """The halves of a table's file, or of a text's."""
    from pplleak.data import table, text  # where they are used

    halves, what = (text.halves, "a text") if _ends(named.name, TEXTS) else (table.halves, "a table")
    require(programs.settings(halves), named.settings, "", what)
    return halves(Path(named.name), **named.settings)


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return Path(name).suffix.lower() in endings


@lru_cache(maxsize=8)
def _load(spec: str, root: str, half: str) -> Images:
    known = names()
    if spec in known:
        read = getattr(folders.load(__name__, "data", spec, "private"), half)
        images: Images = read(Path(root))
        return images
    named = Named.parse(spec)
    if _ends(named.name, TABLES + TEXTS):
        return _file(named)[half == "public"]
    if not os.path.isdir(spec):  # False for what is no path, too
        raise unknown("data", spec, known, "Or give a folder of images, FILE.csv or FILE.txt.")
    from pplleak.data import folder

    return folder.attacked(Path(spec)) if half == "private" else folder.known(Path(spec))
