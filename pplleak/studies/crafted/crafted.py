"""Weights that a malicious server hands out so that a layer separates examples, and how a client may notice them.

`imprinted` makes the first layer of a perceptron count brightness (Robbing the Fed: Fowl et al. 2022):

    W_i x + b_i = h(x) − c_i,   h(x) = mean of the pixels,   c_0 < … < c_{k−1} the quantiles of h on public images

behind which ReLU lets unit i pass where h(x) > c_i, and the next layer treats all units alike, so that δ_bi = d_b for
every one of them. The difference of two adjacent rows of the gradient is then that of the examples between c_i and
c_{i+1} alone, Σ_b d_b [x_b, 1]: `inference/imprint.py` reads them off. With k bins of equal mass, an example is alone
in its bin with probability (1 − 1/k)^(B − 1).

`suspicions` looks at weights alone. In such a layer many rows point the same way, which neither an initialisation nor
training does. It is a necessary sign of attacks by bins, not of every malicious weight: those of SEER (`seer.py`) raise
no alarm. What a server can read off a real update is what `pplleak.studies.audit` tries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pplleak.client import Client, weights
from pplleak.density.first_layer import fully_connected
from pplleak.errors import BadInput

SAME = 0.95  # cosine from which on two rows point the same way; either sign
MANY = 8  # rows that do
LONG = 16  # entries of a row, from which on that is no coincidence
ROWS = 512  # rows of a layer, evenly spaced, that are compared with all others


def imprinted(client: Client, public: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The weights of a client's network with an imprinted first layer: what `weights.state` names.

    Args:
        public: images of the same kind, (N, *input_shape). seed: of the next layer's weights.

    Raises:
        BadInput: the first two layers are not fully connected, with ReLU between them.
    """
    first, bias = fully_connected(client)
    linear = [m for m in client.network.modules() if isinstance(m, nn.Linear)]
    between = [(a, b) for a, b in pairwise(linear) if a.weight is client.parameters[first]]
    if "relu" not in client.kinks or not between or between[0][1].in_features != between[0][0].out_features:
        raise BadInput("an imprint takes two fully connected layers first, with ReLU between them: the network mlp "
                       "with its activation relu, for example")  # fmt: skip
    if tuple(public.shape[1:]) != tuple(client.input_shape):
        raise BadInput(f"the public images have shape {tuple(public.shape[1:])}, the client's {client.input_shape}")
    layer, following = between[0]
    made = {n: t.detach().clone() for n, t in weights.state(client.network).items()}
    names = {id(t): n for n, t in weights.state(client.network).items()}
    units, pixels = layer.weight.shape
    brightness = public.double().flatten(1).mean(1)
    edges = torch.quantile(brightness, torch.arange(units, dtype=torch.float64) / units)
    edges[0] = 0.0  # nothing is darker
    made[first] = torch.full_like(made[first], 1 / pixels)
    made[bias] = -edges.to(made[bias])
    column = torch.randn(following.out_features, 1, generator=torch.Generator().manual_seed(seed)).double()
    column = column / (brightness[:, None] - edges).relu().sum(1).mean()  # the next layer's outputs are of order 1
    made[names[id(following.weight)]] = column.to(layer.weight).expand(-1, units).clone()
    return made


@dataclass(frozen=True)
class Suspicion:
    """A layer of which `rows` of `of` rows point the same way: each of them measures the same of an image."""

    layer: str
    rows: int
    of: int


def suspicions(tensors: Mapping[str, Tensor]) -> list[Suspicion]:
    """The layers of weights that look crafted: at least MANY rows of a layer have a cosine above SAME with one of them.

    Weights of linear layers (out, in) and convolutions (out, in, …) of more than one input channel are looked at; rows
    that are next to nothing beside the longest one are not.
    """
    found = []
    for name, t in tensors.items():
        if not t.is_floating_point() or t.dim() < 2 or (t.dim() > 2 and t.shape[1] == 1):
            continue
        rows = t.detach().float().flatten(1)
        norms = rows.norm(dim=1)
        rows = rows[norms > 1e-6 * norms.max()]
        if len(rows) < MANY or rows.shape[1] < LONG:
            continue
        rows = torch.nn.functional.normalize(rows, dim=1)
        some = rows[:: -(-len(rows) // ROWS)]
        most = int(((some @ rows.mT).abs() > SAME).sum(1).max())
        if most >= MANY:
            found.append(Suspicion(name, most, len(t)))
    return found
