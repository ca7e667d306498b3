"""What the priors of each class share: the labels that they are fitted to, and those that they are asked for."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pplleak import data
from pplleak.errors import BadInput


def labels_of(kind: str, reference: str | Tensor, labels: Tensor | None) -> Tensor:
    """The labels (N,) of the public images `reference`: those that are given, or those that its name knows.

    Raises:
        BadInput: a tensor of images whose labels are not known.
    """
    if labels is not None:
        return labels
    if isinstance(reference, Tensor):
        raise BadInput(f"the prior {kind} is fitted to labelled images, and these have no labels")
    return data.public(reference).y


def require_labelled(kind: str, images: Tensor, labels: Tensor) -> None:
    """Raises BadInput unless there are at least two images, and a label for each."""
    if len(images) < 2 or len(labels) != len(images):
        raise BadInput(f"the prior {kind} needs at least 2 labelled images, got {len(images)} images and "
                       f"{len(labels)} labels")  # fmt: skip


def numbers(labels: Tensor) -> np.ndarray:
    """The labels as an array. They do not depend on the latents, so a recording of the density
    (`pplleak.density.recording`) may take what is made of them for constants; of a tensor it cannot, and gives up where
    one is looked at."""
    array: np.ndarray = labels.cpu().numpy()
    return array


def require_classes(kind: str, y: Tensor, classes: int) -> Tensor:
    """The labels y; raises BadInput where one of them is no class of a prior."""
    if (highest := int(numbers(y).max())) >= classes:
        raise BadInput(f"the prior {kind} has {classes} classes, and there is a label {highest}")
    return y


def require_given(kind: str, labels: Tensor | None) -> Tensor:
    """The labels that images are drawn of; raises BadInput where nobody has said them."""
    if labels is None:
        raise BadInput(f"the prior {kind} draws images of given labels: call of_class(y) first")
    return labels
