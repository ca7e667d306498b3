"""Improved Deep Leakage from Gradients (Zhao et al. 2020): DLG, with the label read off the gradient.

x ~ Uniform(0, 1)                      (batch, *input_shape)
y ~ client's label prior               (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)   (update_size,)

The loss ‖u(x, y) − g‖² is −2σ² log p(g | x, y). For one example the logits' gradient softmax − e_y is negative at y
alone: `labels` reads it there, where the client has not shared it. Its exact counterpart is `dlg`, which sums y out.
The iterations are those of the breaching library for DLG.

Source: Zhao et al. 2020 (iDLG: Improved Deep Leakage from Gradients).
"""

from __future__ import annotations

import pyro
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.density.label_rules import of_one as labels
from pplleak.priors.uniform import uniform

__all__ = ["MAP", "labels", "model"]

MAP = {"optimizer": "lbfgs", "box": True, "starts": 1, "steps": 1200}


def model(client: Client, batch_size: int = 1, *, sigma: float = 0.1) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it.
    """
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    y = pyro.sample("y", client.label_prior(batch_size))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
