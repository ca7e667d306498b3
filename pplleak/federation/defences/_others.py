"""Images of others, which a defence mixes with the private ones or begins at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from pplleak import data
from pplleak.client import Client
from pplleak.data import Images
from pplleak.errors import BadInput

_training = ContextVar("training", default=False)


@contextlib.contextmanager
def trained_on() -> Iterator[None]:
    """Inside, others hold images of the half that networks are trained on: accuracy is measured on the private half."""
    before = _training.set(True)
    try:
        yield
    finally:
        _training.reset(before)


def images_of(others: str, client: Client) -> Images:
    """The private half of `others`, or while a network is trained the public one: digits, mnist, cifar10 or a FOLDER
    ($PPLLEAK_DATA_ROOT).

    Raises:
        BadInput: they have another shape than the client's.
    """
    held = data.public(others) if _training.get() else data.private(others)
    if held.input_shape != client.input_shape:
        raise BadInput(f"the images of '{others}' have shape {held.input_shape}, the client's "
                       f"{tuple(client.input_shape)}: set its others to images like the client's")  # fmt: skip
    return held
