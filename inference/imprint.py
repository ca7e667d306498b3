"""The decoder of an imprinted layer: examples read off the differences of adjacent bins' gradients (a point).

Of a first layer whose units all measure the same of an image, each with another threshold, and which the next layer
treats alike (`pplleak craft`),

    [∂ℓ/∂W | ∂ℓ/∂b]_i = Σ_b [h(x_b) > c_i] d_b [x_b, 1]
    R_i − R_{i+1}     = Σ over the examples of bin i, c_i < h(x_b) ≤ c_{i+1}

and of a bin with one example the quotient is its image. A quotient that its own layer would not put into its bin is a
mixture of several, and left out; one that it would may be one, too. Of a single example every network's differences
are multiples of [x, 1].

Source: Fowl, Geiping, Czaja, Goldblum and Goldstein, Robbing the Fed: Directly Obtaining Private Data in Federated
Learning with Modified Models, ICLR 2022 (the imprint module, and the difference of adjacent bins).
"""

from __future__ import annotations

import pyro
import torch

from pplleak.client import Client
from pplleak.client.loss import require_cross_entropy
from pplleak.density import Model, require_finite
from pplleak.density.first_layer import first_layer, fully_connected, whose
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, read_off
from pplleak.progress import ProgressBar, silent

WEAK = 1e-6  # of the strongest bin: what rounding leaves of an empty one


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    rounding: float = 1e-3,
) -> Posterior:
    """The images of a batch as a posterior of one draw; the model is not looked at.

    Args:
        rounding: by which a pixel may lie outside of [0, 1], and an image's brightness outside of its bin, in bins.
    """
    require_positive(rounding=rounding)
    require_cross_entropy(client.loss, "imprint reads labels off")
    require_finite(observed)
    pyro.set_rng_seed(seed)
    rows, size, names = first_layer(client, observed.g), observed.batch_size, fully_connected(client)
    weight, bias = (client.parameters[n].double() for n in names)
    order = bias.argsort(descending=True)  # the lowest threshold first
    weight, bias, rows = weight[order], bias[order], rows[order]
    bins = rows - torch.cat([rows[1:], torch.zeros_like(rows[:1])])
    strength = bins[:, -1].abs()
    images, above = bins[:, :-1] / bins[:, -1:], torch.cat([bias[1:], bias[-1:] - 1])
    before = (weight * images).sum(1)  # what unit i measures of the image of bin i
    inside = (before + bias > -rounding * (bias - above)) & (before + above < rounding * (bias - above))
    real = (images.amin(1) > -rounding) & (images.amax(1) < 1 + rounding) & (strength > WEAK * strength.max())
    if size == 1:  # every difference is of that one example
        inside, real = strength > 0, strength > 0
    kept = strength.where(inside & real, 0.0).argsort(descending=True)
    kept = kept[: min(size, int((inside & real).sum()))]
    if not len(kept):
        raise BadInput("no difference of two rows of the first layer's gradient is an image: its weights are no "
                       "imprint, every bin holds several examples, or there is noise; take inference map")  # fmt: skip
    missing = size - len(kept)
    said = f"{missing} of {size} images share a bin with another: the mean of what is left for them"
    x = images[kept].clamp(0, 1)
    deltas = bins[kept, -1:] * (x @ weight.mT + bias > 0)
    places, labels = whose(client, x, deltas[:, order.argsort()], names[1], observed.labels, size)
    left = rows[0] - bins[kept].sum(0)  # of all examples, without those
    mean = (left[:-1] / left[-1]).nan_to_num(0.0, 0.0, 0.0)
    x = torch.cat([x, mean.expand(missing, -1)])[places]
    return read_off(client, observed, x, labels, "the differences of adjacent bins' gradients", [said] * (missing > 0))


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
