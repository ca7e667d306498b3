"""Programs that no inference can follow, and inferences that need to be told more: one line each, before the work."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation

if TYPE_CHECKING:
    from pplleak.density.density import Density


def require_finite(observed: Observation) -> None:
    """Raise BadInput for a gradient that is no number somewhere."""
    if not observed.g.isfinite().all():
        raise BadInput("the observation holds NaN or infinity")


def require_told(density: Density, inference: str) -> None:
    """Raise BadInput where the model infers its noise, for an inference that needs to be told σ."""
    if any(site.name == "log_sigma" for site in density.sites):
        raise BadInput(f"inference {inference} needs the noise to be told: give sigma a number, or take hmc or map")


@torch.no_grad()
def require_program(trace: poutine.Trace, client: Client, batch_size: int) -> None:
    """Raise BadInput for a model whose x or g is not what the client takes or shares, or whose density is no number
    where it drew itself."""
    for name, shape in (("x", (batch_size, *client.input_shape)), ("g", (client.update_size,))):
        drawn = tuple(trace.nodes[name]["value"].shape)
        if drawn[-len(shape) :] != shape or any(n != 1 for n in drawn[: -len(shape)]):  # as for one chain
            raise BadInput(f"the model's site '{name}' has shape {drawn}, and the client's has {shape}")
    x = trace.nodes["x"]
    if x["type"] == "sample" and (x["fn"].has_enumerate_support or x["fn"].support.is_discrete):
        raise BadInput("the model's site 'x' is discrete: data are inferred along slopes, draw them from a continuous "
                       "distribution")  # fmt: skip
    with pyro.validation_enabled(False):
        trace.compute_log_prob()
    for name, node in trace.nodes.items():
        density = float(node["log_prob_sum"]) if node["type"] == "sample" else 0.0
        if math.isnan(density) or density == math.inf:
            raise BadInput(f"the model's log-density at its own draw is {density}, of the site '{name}': no inference "
                           "can follow it")  # fmt: skip


def require_possible(log_density: Tensor) -> None:
    """Raise BadInput where log p(z, g) (n,) is above -inf at none of the points that were tried."""
    if not bool((log_density > -math.inf).any()):
        raise BadInput("the model's log-density is -inf, or no number, wherever it was tried: it gives this "
                       "observation, or its own draws, no probability")  # fmt: skip
