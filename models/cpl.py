"""Client Privacy Leakage (CPL; Wei et al. 2020): images that the network takes for their label.

p(x, y) ∝ p(y) exp(−alpha ‖softmax f(x) − e_y‖² / 2 sigma²) on [0, 1]   (batch, *input_shape) and (batch,)
g | x, y ~ Normal(u(x, y), sigma² I)                                    (update_size,)

The attack minimises ‖u(x, y) − g‖² + alpha ‖f(x) − y‖² = −2σ² log p(x, y | g) + constant, by L-BFGS. The
regulariser is a Gibbs factor that ties image and label; like that of `tv` it is ignored where nothing is observed. The
patterned start of the paper is no belief: starts are prior draws here. The iterations are the breaching library's.

Source: Wei et al. 2020 (A Framework for Evaluating Client Privacy Leakages in Federated Learning).
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pplleak import channels
from pplleak.client import Client
from pplleak.client.loss import require_cross_entropy
from pplleak.priors.uniform import uniform

MAP = {"optimizer": "lbfgs", "box": True, "starts": 1, "steps": 300}


def model(client: Client, batch_size: int = 1, *, sigma: float = 0.1, alpha: float = 1.0) -> Tensor:
    """The generative program.

    Args:
        sigma: standard deviation of the noise on each entry of the gradient, as the adversary believes it; it scales
            all of the attack's loss alike.
        alpha: weight of the distance of prediction and label, beside the squared gradient distance.
    """
    require_cross_entropy(client.loss, "the model cpl compares predictions as under")
    x = pyro.sample("x", uniform(client.input_shape, batch_size))
    y = pyro.sample("y", client.label_prior(batch_size))
    event = len(client.input_shape) + 1
    batches = x.to(client.dtype).reshape(-1, *x.shape[-event:])
    predicted = torch.vmap(client.network)(batches).softmax(-1).reshape(*x.shape[:-event], batch_size, -1)
    one_hot = torch.eye(client.num_classes).to(predicted)[y]  # torch's own looks at the labels, which no tape records
    misfit = (predicted - one_hot).square().sum((-2, -1))
    pyro.factor("label", -alpha * misfit / (2 * sigma**2))
    return pyro.sample("g", channels.Gaussian(client.update(x, y), sigma))
