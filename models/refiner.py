"""Bayes-optimal behind Refiner: what was made of an image is a latent, and goes with the image as on public data.

z ~ Normal(0, I)                            (batch, rank)
(x, x*) = mean + factor z                   (batch, 2, *input_shape): a Gaussian fitted to pairs the adversary makes
y ~ client's label prior                    (batch,)
g | x, y ~ Normal(u(x*, y), sigma²)         (update_size,)

The gradient says all of x*, and x* of x what it says on average of public images: the defence is a program that anybody
can run on them, with the client's own weights. `transformed` is x*.

Source: Balunović et al. 2022, section 4 (the optimal adversary), for the data of Fan et al. 2024; that what has no
density is simulated is a synthetic likelihood (Wood 2010).
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels, data
from pplleak.client import Client
from pplleak.federation.defences import _synthetic

MAP = {"steps": 400, "starts": 2, "lr": 0.1}  # twice as many dimensions as an image has


def model(
    client: Client,
    batch_size: int = 1,
    *,
    sigma: float = 0.1,
    trade: float = 0.1,
    far: float = 0.3,
    blend: float = 0.5,
    steps: int = 50,
    lr: float = 0.03,
    simulated: int = 2000,
    reference: str | Tensor = "digits",
    reference_labels: Tensor | None = None,
    floor: float = 0.1,
) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
        trade: what the defence takes the distance from the image to be worth.
        far: the distance at which that begins to saturate, root-mean-square of a pixel.
        blend: the share of noise in what the defence begins with.
        steps: of the defence's descent.
        lr: of the defence's descent, in pixel units.
        simulated: public images that the adversary runs the defence on, at most.
        reference: the public images: digits, mnist, cifar10 or a FOLDER (or a tensor).
        reference_labels: of a tensor of them; without, labels are drawn at random.
        floor: standard deviation, in pixel units, that a pixel of either image keeps beside what the pairs say, of
            which there are few for so many pixels.
    """
    public = data.reference(reference, client.input_shape)
    settings = {"trade": trade, "far": far, "blend": blend, "steps": steps, "lr": lr}
    both = _synthetic.joint(client, "refiner", settings, public, reference_labels, simulated, floor)
    pair = both.decode(pyro.sample("z", both.coefficients(batch_size)))
    at = -len(client.input_shape) - 1
    pyro.deterministic("x", pair.select(at, 0))
    made = pyro.deterministic("transformed", pair.select(at, 1))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(made, y), sigma))
