"""Observation files as observations: the client is built anew, with the weights that the file holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pplleak import data
from pplleak.client import Client, networks, sizes, weights
from pplleak.client.loss import built_in_loss
from pplleak.errors import BadInput, printable
from pplleak.federation import files
from pplleak.federation.observation import Observation, flatten, with_targets
from pplleak.federation.scenario import Precision, Scenario, build_client, of_client
from pplleak.settings import Named


def load(
    path: str | Path,
    *,
    network: str | Named | None = None,
    checkpoint: str | Path | None = None,
    public: data.Images | Tensor | None = None,
    seed: int = 0,
    dtype: Precision = "float32",
    device: str = "cpu",
    shared_only: bool = False,
    loss: str | None = None,
) -> Observation:
    """What an observation file holds.

    Args:
        network: overrides the one that the file names; needed where that is code, FILE.py:FUNCTION.
        checkpoint: the weights, where the file holds none; without either, a network that `network` builds with weights
            of its own, never ones drawn from the seed. public: images of the same kind, (N, *input_shape), with their
            labels or without; the rows of a table and sentences also say what the client's inputs encode.
        shared_only: parameters that the file lacks were not shared, whether it says so itself or not.
        loss: needed where the file's is code, FILE.py:FUNCTION; else the file says it.

    Raises:
        NotShared: it lacks parameters, and neither the file nor `shared_only` says why.
        BadInput: no readable observation, or one of another network.
    """
    shared = files.read(path)
    meta = shared.metadata
    known = public if isinstance(public, data.Images) else None
    vocabulary = None if known is None else known.vocabulary
    if not meta:
        raise BadInput(f"{path} has no pplleak metadata: wrap it with `pplleak observe`, which asks for its network "
                       "and the shape of one example")  # fmt: skip
    if meta["settings"].get("vocabulary") and vocabulary is None:
        raise BadInput(f"{path} is of text, and nothing says what its tokens are: name the data that its vocabulary is "
                       "of (FILE.txt)")  # fmt: skip
    columns = known.columns if known is not None and known.input_shape == tuple(meta["input_shape"]) else None
    named = Named(built_in(path, meta), meta["settings"]) if network is None else network
    protection = files.protection_of(meta, str(path))
    client = build_client(
        named, tuple(meta["input_shape"]), meta["num_classes"], seed=seed, dtype=dtype, device=device,
        parameters=shared.parameters, where=str(path), checkpoint=checkpoint, local=meta["local"],
        loss=_loss(path, meta, loss), normalise=tuple(meta["normalise"]), defence=protection.defence,
        shared=shared.gradient if shared_only or meta["shared_only"] else None,
        mode=meta["mode"], columns=columns, vocabulary=vocabulary,
    )  # fmt: skip
    sizes.require_batch(client, meta["batch_size"])
    if not shared.parameters and checkpoint is None:
        require_weights(client, named, str(path), seed=seed)
    g = flatten(client, shared.gradient, str(path))
    client, labels = with_targets(
        client, meta["labels"] if meta["targets"] is None else meta["targets"], meta["batch_size"]
    )
    made = of_client(Named.parse(named), checkpoint, client, tuple(meta["normalise"]))
    provenance = {"observed": str(path), **made, **({"privacy": meta["privacy"]} if meta["privacy"] else {})}
    images, classes = (public.x, public.y) if isinstance(public, data.Images) else (public, None)
    return Observation(
        g, meta["batch_size"], labels, client, protection, images, provenance=provenance, public_labels=classes
    )


def require_weights(client: Client, network: str | Named, where: str, *, seed: int) -> None:
    """Raise BadInput where a client that was built without weights owes them to the seed: nobody shared them."""
    named = network if isinstance(network, Named) else Scenario(network=network).network  # type: ignore[arg-type]
    other = build_client(named, client.input_shape, client.num_classes, seed=seed + 1, vocabulary=client.vocabulary)
    same = (torch.equal(p.cpu().double(), q.cpu().double()) for p, q in zip(
        client.network.parameters(), other.network.parameters(), strict=False))  # fmt: skip
    if not all(same):
        raise BadInput(f"{where} holds no weights, and a gradient means nothing without them: where are the weights? "
                       "Write them as parameter.NAME, or name a checkpoint")  # fmt: skip


def built_in(path: str | Path, metadata: Mapping[str, Any]) -> str:
    """The built-in network that a file names; it is looked up, never parsed.

    Raises:
        BadInput: the file names anything else. A file is never allowed to choose code to run.
    """
    name: str = metadata["network"]
    if name not in networks.names():
        raise BadInput(f"{path} was made with the network '{printable(name)}', which is not a built-in one but code: "
                       "if you trust it, name the network yourself")  # fmt: skip
    return name


def _loss(path: str | Path, metadata: Mapping[str, Any], given: str | None) -> str:
    """The loss of a file, which is never allowed to choose code to run: one of that kind has to be named."""
    said: str = metadata["loss"]
    if built_in_loss(said):
        if given is not None and given != said:
            raise BadInput(f"{path} says that its client's loss is {printable(said)}: name no other one")
        return said
    if given is None:
        raise BadInput(f"{path} was made with the loss '{printable(said)}', which is not a built-in one but code: if "
                       "you trust it, name the loss yourself")  # fmt: skip
    return given


def save(observed: Observation, path: str | Path) -> None:
    """The file of an observation: what `load` reads, and nothing of the truth."""
    client, vectors = observed.client, observed.client.targets
    files.write(
        path,
        client.split(observed.g),
        input_shape=client.input_shape,
        num_classes=client.num_classes,
        network=Named(observed.provenance["network"], observed.provenance["network_settings"]),
        parameters=weights.state(client.network),
        batch_size=observed.batch_size,
        protection=observed.protection,
        labels=None if observed.labels is None or vectors is not None else observed.labels.tolist(),
        targets=None if observed.labels is None or vectors is None else vectors[observed.labels].tolist(),
        local=client.local,
        loss=client.loss,
        normalise=observed.provenance.get("normalise", ()),
        shared_only=bool(client.withheld),
    )
