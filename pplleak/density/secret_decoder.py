"""The secret decoder of malicious weights, which `studies/crafted/seer.py` trains and `inference/seer.py` applies.

    x* = r(D g),   r(v) = sigmoid(W₂ gelu(8 W₁ v / ‖v‖ + b₁) + b₂)

with g the sum of a batch's gradients, D (directions, update_size).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pplleak.client import Client
from pplleak.errors import BadInput, printable
from pplleak.tensors import read

NAMES = ("project", "first", "first bias", "second", "second bias", "mean")


def decoded(decoder: Mapping[str, Tensor], seen: Tensor) -> Tensor:
    """r(D g): pixels (…, pixels) in [0, 1] of D g (…, directions)."""
    seen = nn.functional.normalize(seen, dim=-1)
    hidden = nn.functional.gelu(8 * seen @ decoder["first"].mT + decoder["first bias"])
    return torch.sigmoid(hidden @ decoder["second"].mT + decoder["second bias"])


def load(path: Path, client: Client) -> dict[str, Tensor]:
    """The tensors of a decoder for a client's gradients, float32, on its device.

    Raises:
        BadInput: no safetensors file, or no decoder of such a client's.
    """
    tensors, _ = read(path)
    if not set(NAMES) <= tensors.keys():
        raise BadInput(f"{printable(path)} holds no decoder: it has no '{next(n for n in NAMES if n not in tensors)}'")
    held = {n: tensors[n].float().to(client.device) for n in NAMES}
    pixels, (directions, hidden) = math.prod(client.input_shape), (len(held["project"]), len(held["first"]))
    wanted = {"project": (directions, client.update_size), "first": (hidden, directions), "first bias": (hidden,),
              "second": (pixels, hidden), "second bias": (pixels,), "mean": (pixels,)}  # fmt: skip
    for name, shape in wanted.items():
        if tuple(held[name].shape) != shape or not held[name].isfinite().all():
            raise BadInput(f"{printable(path)} was not trained for this client: '{name}' has the shape "
                           f"{tuple(held[name].shape)}, and {shape} is due")  # fmt: skip
    return held
