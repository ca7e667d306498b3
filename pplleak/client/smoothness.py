"""Is a network smooth? Found by watching one forward pass, so that functional calls are seen as modules are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pplleak.errors import BadInput

if TYPE_CHECKING:
    from pplleak.client.client import Client

# Operations whose derivative jumps: a gradient through them is a discontinuous function of the input.
_KINKED = {
    "relu", "leaky_relu", "rrelu_with_noise", "threshold", "hardtanh", "hardsigmoid", "hardswish", "hardshrink",
    "softshrink", "kinked elu", "clamp", "clamp_min", "clamp_max", "abs", "sign", "heaviside", "round", "floor", "ceil",
    "trunc", "frac", "maximum", "minimum", "fmax", "fmin", "max", "min", "amax", "amin", "aminmax", "sort", "topk",
    "kthvalue", "median", "nanmedian", "gt", "ge", "lt", "le",
}  # fmt: skip


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under it: torch need not import its compiler, which takes as long as torch itself."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.strip("_")
        if name == "elu" and _kinked_elu(*args[1:]):
            name = "kinked elu"
        if isinstance(args[0] if args else None, Tensor) and args[0].is_floating_point():
            self.names.add(name)  # of whole numbers (positions, masks) nothing is differentiated
        return func(*args, **(kwargs or {}))


def _kinked_elu(alpha: float = 1, scale: float = 1, input_scale: float = 1) -> bool:
    """elu(x) = scale · (x if x > 0 else alpha (exp(input_scale x) − 1)): smooth where the two slopes at 0 agree."""
    return alpha * input_scale != 1


def probe(network: nn.Module, x: Tensor) -> tuple[tuple[str, ...], object]:
    """The kinked operations of one forward pass (functional calls included), and its output."""
    recorder = _Recorder()
    try:
        with recorder, torch.no_grad():
            logits = network(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise BadInput(
            f"the network does not take images of shape {tuple(x.shape[1:])}: {str(error).splitlines()[0]}"
        ) from error
    kinks = {n for n in recorder.names if n.removesuffix("_") in _KINKED or "max_pool" in n or "prelu" in n}
    return tuple(sorted(kinks)), logits


def distrust(client: Client, method: str) -> tuple[str, ...]:
    """Why a method that follows slopes is not to be trusted on this client; () where the network is smooth."""
    if not client.kinks:
        return ()
    return (
        f"the network has kinks ({', '.join(client.kinks)}): its posterior jumps, {method} cannot cross the jumps, and "
        "this result is not to be trusted; attack a smooth activation, or take the inference refractive (perceptrons), "
        "billiard (layers that are modules; slow) or elliptical (any network, where the gradient says little), or a "
        "labelled approximation, a surrogate of sharpness 100",
    )
