"""ATS (Gao et al. 2021): transform every image by a searched policy before its gradient is taken.

    g = u(T(x), y),     T = T_3 ∘ T_2 ∘ T_1

A policy is three of the 50 operations that the authors number from 0 ("3-1-7": translateX, contrast, translateY), as
in their `policy.py`; "a+b" takes either policy with equal probability. Most operations act with a random sign (left
or right, brighter or darker), drawn for each image: T is one of `variants(policy)`, and that is all that is random.

Operations work on tensors in [0, 1], so that an adversary can differentiate them: bilinear, where the
authors' PIL takes the nearest pixel or a bicubic. equalize, posterize and solarize jump (a small change of x is no
small change of T(x)), and policies with them are refused; solarize at magnitude 0 does nothing, and is not. Their
random crops and flips, which belong to training and not to the policy, are left out.

Source: Gao, Guo, Zhang, Qiu, Wen and Liu, Privacy-preserving Collaborative Learning with Automatic Transformation
Search, CVPR 2021; the operations' ranges and the policies are those of the authors' code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.defences import Attacks
from pplleak.priors.labels import Labels

ATTACKS = Attacks("inverting_gradients", "Gao et al. 2021", "ats")

OPERATIONS: tuple[tuple[str, int], ...] = (  # of the authors' policy.py: name and magnitude, 0 to 9
    ("invert", 7), ("contrast", 6), ("rotate", 2), ("translateX", 9), ("sharpness", 1),
    ("sharpness", 3), ("shearY", 2), ("translateY", 2), ("autocontrast", 5), ("equalize", 2),
    ("shearY", 5), ("posterize", 5), ("color", 3), ("brightness", 5), ("sharpness", 9),
    ("brightness", 9), ("equalize", 5), ("equalize", 1), ("contrast", 7), ("sharpness", 5),
    ("color", 5), ("translateX", 5), ("equalize", 7), ("autocontrast", 8), ("translateY", 3),
    ("sharpness", 6), ("brightness", 6), ("color", 8), ("solarize", 0), ("invert", 0),
    ("equalize", 0), ("autocontrast", 0), ("equalize", 8), ("equalize", 4), ("color", 5),
    ("equalize", 5), ("autocontrast", 4), ("solarize", 4), ("brightness", 3), ("color", 0),
    ("solarize", 1), ("autocontrast", 0), ("translateY", 3), ("translateY", 3), ("autocontrast", 1),
    ("solarize", 1), ("equalize", 5), ("invert", 0), ("translateY", 3), ("autocontrast", 1),
)  # fmt: skip
LARGEST = {  # at magnitude 9: an angle in degrees, a share of the side, a slope, a factor's distance from 1
    "rotate": 30.0, "translateX": 150 / 331, "translateY": 150 / 331, "shearX": 0.3, "shearY": 0.3,
    "brightness": 0.5, "contrast": 0.5, "color": 0.5, "sharpness": 0.5,
}  # fmt: skip
MOVES = ("rotate", "translateX", "translateY", "shearX", "shearY")
GREY = 128 / 255  # what a rotation puts into the corners, in the authors' code; shifts and shears put black


@dataclass(frozen=True)
class Variant:
    """One of the transforms that a policy draws from: (name, signed amount) one after the other; its probability."""

    steps: tuple[tuple[str, float], ...]
    probability: float


def share(client: Client, x: Tensor, y: Tensor, *, policy: str = "3-1-7") -> Tensor:
    """The gradient of the transformed images, (D,).

    Args:
        policy: three operations by the authors' numbers, 3-1-7; or one of several such policies, 3-1-7+43-18-18.
    """
    x = x.to(client.dtype)
    return client.update(transform(x, choices(policy, len(y)).sample(), policy), y).materialise()


@lru_cache(maxsize=16)
def variants(policy: str) -> tuple[Variant, ...]:
    """Every transform that a policy may draw; raises BadInput for a policy that is unknown or jumps."""
    found = []
    parts = policy.split("+")
    for part in parts:
        choices_of = [_operation(number, policy) for number in part.split("-")]
        several = list(itertools.product(*choices_of))
        found += [Variant(steps, 1 / len(parts) / len(several)) for steps in several]
    return tuple(found)


def _operation(number: str, policy: str) -> list[tuple[str, float]]:
    """The (name, signed amount) that one number of a policy stands for; equal ones count once."""
    if not number.isdigit() or int(number) >= len(OPERATIONS):
        raise BadInput(f"unknown policy '{policy}': give three numbers of operations from 0 to {len(OPERATIONS) - 1}, "
                       "as 3-1-7, or several such with + between")  # fmt: skip
    name, magnitude = OPERATIONS[int(number)]
    if name in UNSIGNED:
        return [(name, 0.0)]
    if name in LARGEST:
        amount = LARGEST[name] * magnitude / 9
        return [(name, amount), (name, -amount)] if amount else [(name, 0.0)]
    if name == "solarize" and magnitude == 0:
        return [("brightness", 0.0)]  # beyond the threshold lies no pixel
    raise BadInput(f"policy '{policy}': operation {number} is {name}, which jumps, and has no derivative that an "
                   "adversary could follow: take one without equalize, posterize and solarize")  # fmt: skip


def choices(policy: str, batch_size: int, like: Tensor | None = None) -> Labels:
    """Which variant each image of a batch gets: independent, event shape (batch_size,)."""
    logits = torch.tensor([math.log(v.probability) for v in variants(policy)])
    return Labels(logits if like is None else logits.to(like), batch_size)


def transform(x: Tensor, choice: Tensor, policy: str) -> Tensor:
    """T(x), each image by its own variant.

    Args:
        x: (*lead, batch, channels, height, width). choice: (*lead, batch), whole numbers below len(variants(policy));
            leading dimensions broadcast against those of x.
    """
    if x.dim() < 4:
        raise BadInput(f"ats transforms images (channels, height, width), not {tuple(x.shape[1:])}")
    found = torch.stack([apply(x, v.steps) for v in variants(policy)])
    lead = np.broadcast_shapes(choice.shape, x.shape[:-3])
    found = found.reshape(len(found), *[1] * (len(lead) + 3 - x.dim()), *x.shape)
    index = choice.expand(lead)[None, ..., None, None, None].expand(1, *lead, *x.shape[-3:])
    return found.expand(len(found), *lead, *x.shape[-3:]).gather(0, index)[0]


def apply(x: Tensor, steps: Sequence[tuple[str, float]]) -> Tensor:
    """Operations one after the other on images (..., channels, height, width) in [0, 1], differentiable."""
    for name, amount in steps:
        if name in UNSIGNED:
            x = UNSIGNED[name](x)
        elif amount:
            x = _moved(x, name, amount) if name in MOVES else _enhanced(x, name, 1 + amount)
    return x


def _stretched(x: Tensor) -> Tensor:
    """Each channel from its darkest to its brightest pixel, spread over [0, 1]; a constant one as it is."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    flat = high <= low
    return torch.where(flat, x, (x - low) / torch.where(flat, torch.ones_like(high), high - low))


UNSIGNED: dict[str, Callable[[Tensor], Tensor]] = {"invert": lambda x: 1 - x, "autocontrast": _stretched}


def _enhanced(x: Tensor, name: str, factor: float) -> Tensor:
    """PIL's ImageEnhance: clip(factor x + (1 − factor) x₀), x₀ the image without any of what is enhanced."""
    from torchvision.transforms.v2 import functional as F

    grey = F.rgb_to_grayscale(x) if x.shape[-3] == 3 else x
    if name == "brightness":
        without = torch.zeros_like(x)
    elif name == "contrast":
        without = grey.mean((-3, -2, -1), keepdim=True)
    elif name == "color":
        without = grey
    else:
        kernel = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]], dtype=x.dtype, device=x.device) / 13
        inner = conv2d(x.reshape(-1, 1, *x.shape[-2:]), kernel[None, None]).reshape(*x.shape[:-2], x.shape[-2] - 2, -1)
        border = torch.ones_like(x[..., 1:-1, 1:-1])
        without = pad(inner, (1, 1, 1, 1)) + x * (1 - pad(border, (1, 1, 1, 1)))
    return (factor * x + (1 - factor) * without).clamp(0, 1)


def _moved(x: Tensor, name: str, amount: float) -> Tensor:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    height, width = x.shape[-2:]
    shift, shear, angle, fill, centre = [0.0, 0.0], [0.0, 0.0], 0.0, 0.0, [0.0, 0.0]
    if name == "rotate":
        angle, fill, centre = amount, GREY, [width / 2, height / 2]
    elif name.startswith("translate"):
        shift = [amount * width, 0.0] if name == "translateX" else [0.0, amount * height]
    else:
        degrees = math.degrees(math.atan(amount))
        shear = [degrees, 0.0] if name == "shearX" else [0.0, degrees]
    moved = F.affine(
        (x - fill).reshape(-1, *x.shape[-3:]), angle=angle, translate=shift, scale=1.0, shear=shear,
        interpolation=InterpolationMode.BILINEAR, center=centre,
    )  # fmt: skip
    return moved.reshape(x.shape) + fill
