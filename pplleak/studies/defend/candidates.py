"""Other attacks' reconstructions, judged by an adversary who knows the defence.

A climb may end on a minor peak, or below its own. Where a model's x is an invertible image of its latents, every image
has a density under it: the adversary climbs on from those of the others, too, and keeps what its posterior ranks
highest. No truth is needed for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine

from pplleak import programs
from pplleak.client import Client
from pplleak.density import Density, build
from pplleak.density.chart import chart
from pplleak.density.first_layer import first_layer
from pplleak.density.search import maximise
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.studies.attack.attack import attack, believe

LR = 0.02  # of the climbs from images that are near a peak, in prior standard deviations a step


def readable(client: Client) -> bool:
    """Whether the client's first layer gives images away in closed form (`inference/quotient.py`)."""
    try:
        first_layer(client, torch.zeros(client.update_size))
    except BadInput:
        return False
    return True


def read_off(observed: Observation, model: str) -> np.ndarray | None:
    """The images (batch, *input_shape) that the first layer's gradient holds; None where that of this one is zero."""
    try:
        return attack(observed, model, "quotient").mode
    except BadInput:
        return None


def holds(observed: Observation, model: str) -> bool:
    """Whether the images that the first layer's gradient holds are x to who believes a model, and not what was made of
    x: its program has a site `transformed` for that of which the gradient was taken."""
    bound = believe(programs.load("models", model), observed)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return "transformed" not in poutine.trace(bound).get_trace(observed.client, observed.batch_size).nodes


def best(
    observed: Observation,
    model: str,
    beliefs: Mapping[str, Any],
    images: Mapping[str, np.ndarray],
    otherwise: str,
    *,
    wide: Mapping[str, Any] | None = None,
    steps: int = 0,
) -> tuple[str, np.ndarray]:
    """The image of the highest density under a model, and whose it was.

    Args:
        images: by whom, (batch, *input_shape) each. beliefs: of the density that ranks.
        otherwise: whose it is where x of the model is no invertible image of its latents alone, so that no density of
            x can be had.
        wide: beliefs of the density that is climbed for `steps` steps from each of them: a peak too sharp to be climbed
            is widened. Both ends of each climb are ranked.
    """
    names = list(images)

    def built(believed: Mapping[str, Any]) -> Density:
        bound = believe(programs.load("models", model), observed, believed)
        return build(bound, observed.client, observed)

    density = built(beliefs)
    try:
        invertible = chart(density)
    except BadInput:
        return otherwise, images[otherwise]
    x = np.stack([v.reshape(-1) for v in images.values()])
    z = invertible.latents(torch.tensor(x, dtype=torch.float64)).to(observed.client.dtype)
    if steps:
        climbed = built(wide) if wide else density
        maximum = maximise(climbed, begin=z, steps=steps, lr=LR).whole()
        z, names = torch.cat([z, maximum.z]), names + [names[k] for k in maximum.start]
    with torch.no_grad():
        heights = density(z, jacobian=False) - invertible.log_det(z)
        first = int(torch.nan_to_num(heights, nan=-math.inf).argmax())
        if first < len(images):
            return names[first], images[names[first]]  # as it came: the way to z and back rounds
        like = images[names[first]]
    return names[first], invertible.image(z[first]).reshape(like.shape).numpy().astype(like.dtype)
