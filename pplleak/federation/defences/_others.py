"""Images of others, which a defence mixes with the private ones or begins at."""

from __future__ import annotations

from pplleak import data
from pplleak.client import Client
from pplleak.data import Images
from pplleak.errors import BadInput


def images_of(others: str, client: Client) -> Images:
    """The private half of `others`: digits, mnist, cifar10 or a FOLDER ($PPLLEAK_DATA_ROOT).

    Raises:
        BadInput: they have another shape than the client's.
    """
    held = data.private(others)
    if held.input_shape != client.input_shape:
        raise BadInput(f"the images of '{others}' have shape {held.input_shape}, the client's "
                       f"{tuple(client.input_shape)}: set its others to images like the client's")  # fmt: skip
    return held
