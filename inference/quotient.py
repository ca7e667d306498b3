"""The quotient of the first layer: images read off the gradient in closed form, whatever lies behind it (a point).

For a first layer W x + b that is fully connected, with δ_b the loss's gradient at its output for example b,

    [∂ℓ/∂W | ∂ℓ/∂b] = Σ_b δ_b [x_b, 1]ᵀ

For one example this matrix has rank 1: every row is a multiple of [x, 1], x = ∂ℓ/∂W_i / ∂ℓ/∂b_i, and the best of all
rows at once is its leading singular vector: the maximum of p(g | x, δ) under Gaussian noise, with δ unknown. No prior,
no label, and nothing of the network behind the layer is needed, nor any noise that is drawn there (PRECODE): without
noise on the gradient, the posterior of any model collapses to this point. Of a batch, a unit that is active for one
example alone (ReLU) gives that example away; such rows are found as those whose quotients agree.

Source: Balunović et al. 2022, section 5 (the attack on PRECODE); Phong et al. 2017 for a single neuron.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Model, label_rules, require_finite
from pplleak.density.first_layer import first_layer
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, read_off
from pplleak.progress import ProgressBar, silent

AGREE = 3  # rows that make an image of a batch


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    tolerance: float = 1e-5,
) -> Posterior:
    """The images of a batch as a posterior of one draw; the model is not looked at.

    Args:
        tolerance: root mean square, in pixel units, up to which two rows' quotients of a batch are of the same image.
    """
    require_positive(tolerance=tolerance)
    require_finite(observed)
    pyro.set_rng_seed(seed)
    rows = first_layer(client, observed.g)
    reasons = []
    if observed.batch_size == 1:
        images = _leading(rows)[None]
    else:
        images = _alone(rows, observed.batch_size, tolerance)
        missing = observed.batch_size - len(images)
        if not len(images):
            raise BadInput(
                "every unit of the first layer is active for several examples at once, and no row of its gradient is a "
                "single image: take inference map or hmc"
            )
        if missing:
            reasons.append(f"{missing} of {observed.batch_size} images share every unit with another: a mean for them")
            images = torch.cat([images, _leading(rows).expand(missing, -1)])
    labels = observed.labels
    if labels is None:
        labels = (label_rules.of_one if observed.batch_size == 1 else label_rules.of_distinct)(client, observed)
    return read_off(client, observed, images, labels, "the quotient of the first layer's gradients", reasons)


def _leading(rows: Tensor) -> Tensor:
    """x (pixels,) of the multiple of [x, 1] that is nearest to all rows at once."""
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    scale = directions[0, -1]
    if not scale.abs() > 1e-12:
        raise BadInput("the first layer's gradient is zero or says nothing of its bias: take inference map or hmc")
    return directions[0, :-1] / scale


def _alone(rows: Tensor, batch_size: int, tolerance: float) -> Tensor:
    """The images that the most rows agree on, (found ≤ batch, pixels).

    Rows of several examples lie between their images, where two may meet by chance; `AGREE` of them do not.
    """
    strength = rows[:, -1].abs()
    rows = rows[strength > 1e-9 * strength.max().clamp(min=1e-300)]
    quotients = rows[:, :-1] / rows[:, -1:]
    same = torch.cdist(quotients, quotients) <= tolerance * quotients.shape[1] ** 0.5
    images: list[Tensor] = []
    while len(rows) and len(images) < batch_size:
        group = same[same.sum(1).argmax()]
        if group.sum() < AGREE:
            break
        images.append(_leading(rows[group]))
        rows, same = rows[~group], same[~group][:, ~group]
    return torch.stack(images) if images else rows.new_zeros(0, quotients.shape[1])


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
