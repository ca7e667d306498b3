"""The paper's CNN after some steps of training, as `pplleak train --network convnet` does it; made once and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pplleak import data
from pplleak.federation import rounds
from pplleak.federation.protection import Protection
from pplleak.federation.rounds import Federation
from pplleak.federation.scenario import Scenario, client_of
from pplleak.priors import _store as store
from pplleak.progress import bar
from pplleak.settings import Named

NAME, USUAL = "convnet", (0, 10, 100, 1000)


def checkpoint(spec: str, root: Path | None, steps: int) -> Path:
    """A safetensors file of the CNN's weights after `steps` steps on the public images.

    Those of step 0 are the weights that the seed gives everywhere in pplleak. A longer run passes through the
    checkpoints of the shorter ones.
    """
    folder = _folder(spec)
    if not rounds.path(folder, steps).is_file():
        images, private = data.public(spec, root), data.private(spec, root)
        client = client_of(Scenario(spec, root, network=Named(NAME)))
        _, finished = rounds.train(
            client, images, private, Federation(), Protection(), folder, progress=bar,
            checkpoints=sorted({steps, *(s for s in USUAL if s < steps)}),
            settings=rounds.record(spec, Named(NAME), Federation(), Protection()),
        )  # fmt: skip
        if not finished:  # Ctrl-C: there is no such checkpoint
            raise KeyboardInterrupt
    return rounds.path(folder, steps)


def accuracy(spec: str, steps: int) -> float:
    """Of a checkpoint, on all private images."""
    return next(float(row["accuracy"]) for row in rounds.log(_folder(spec)) if row["step"] == steps)


def _folder(spec: str) -> Path:
    """Of a dataset's name; of a folder of images, by where it lies: two may have one name."""
    place = f"-{hashlib.sha256(str(Path(spec).resolve()).encode()).hexdigest()[:8]}" if Path(spec).is_dir() else ""
    return store.cache() / f"paper-{NAME}-{Path(spec).name}{place}"
