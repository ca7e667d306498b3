"""Dropout in train mode: masks that are a function of noise, so that who attacks can have them as latents.

    m_i ~ Bernoulli(1 − p),     m_i = 1 where |ε_i| ≤ Φ⁻¹(1 − p / 2),  ε ~ Normal(0, I)

Every example draws its own ε, one number an entry that is kept or dropped (a channel, of `Dropout2d`; a branch, of
torchvision's stochastic depth); what is kept is divided by 1 − p. At ε = 0 everything is kept. The mask jumps; its
slope is that of a sigmoid of width 0.3 (a straight-through estimate, Bengio et al. 2013): values are exact, and a
search is told which way an entry lies.

Source: Srivastava et al. 2014; Huang et al. 2016 (stochastic depth); Scheliga et al. 2023 (image and mask together).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from pplleak.errors import BadInput

WIDTH = 0.3  # of the sigmoid that lends a mask its slope, in standard deviations of ε


def bound(rate: float) -> float:
    """|ε| up to which an entry is kept."""
    return NormalDist().inv_cdf(1 - rate / 2)


def mask(noise: Tensor, rate: float) -> Tensor:
    """m of ε, ones and zeros, with the slope of a sigmoid; rate p in (0, 1)."""
    inside = bound(rate) - noise.abs()
    soft = torch.sigmoid(inside / WIDTH)
    return (inside >= 0).to(soft) + (soft - soft.detach())


@dataclass(eq=False)
class Drawn:
    """What the hooks of one network share while it computes: ε (examples, n), and how much of it has been used."""

    noise: Tensor | None = None
    used: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def take(self, shape: tuple[int, ...], examples: int) -> Tensor | None:
        """The ε of the next mask, (examples, *shape)."""
        start, self.used = self.used, self.used + math.prod(shape)
        if self.noise is None:
            self.shapes.append(shape)
            return None
        return self.noise[:, start : self.used].reshape(examples, *shape)


@dataclass(eq=False)
class Before:
    """A hook before the network: it takes the noise off the network's arguments."""

    drawn: Drawn

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *noise = args
        self.drawn.noise, self.drawn.used, self.drawn.shapes = noise[0] if noise else None, 0, []
        return (x,)


@dataclass(eq=False)
class After:
    """A hook behind the network: where noise was given, logits and what each example adds to the loss, which is 0."""

    drawn: Drawn

    def __call__(self, _: nn.Module, args: tuple[Any, ...], logits: Any) -> Any:
        given, self.drawn.noise = self.drawn.noise is not None, None
        return (logits, 0 * logits[:, 0]) if given else logits


@dataclass(eq=False)
class Masked:
    """A hook behind a dropout in eval mode, which passes its input on: the input times its mask."""

    drawn: Drawn
    rate: float
    dims: int  # of one example's mask: the leading ones of the input's; -1 for all

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        own = output.shape[1:]
        shape = tuple(own) if self.dims < 0 else tuple(own[: self.dims]) + (1,) * (len(own) - self.dims)
        noise = self.drawn.take(shape, len(output))
        return output if noise is None else output * mask(noise, self.rate) / (1 - self.rate)


def draw_from_noise(network: nn.Module, x: Tensor) -> bool:
    """Make the dropouts of a network in train mode functions of noise, in place: `network.noise_shape` says how much.

    A network without any stays as it is: False. Of one that is given no noise every entry is kept, as in eval mode.

    Args:
        x: a batch that it takes.

    Raises:
        BadInput: a dropout of another kind (of torch's `nn.AlphaDropout`, or behind torchvision's stochastic depth of
            whole batches), whose masks are not those above.
    """
    dropping = {name: (module, *what) for name, module in network.named_modules() if (what := _rate(module, name))}
    if not dropping:
        return False
    if hasattr(network, "noise_shape"):
        raise BadInput("the network draws noise of its own and has dropout in train mode: call .eval() on its dropouts")
    drawn = Drawn()
    for module, rate, dims in dropping.values():
        module.eval()
        module.register_forward_hook(Masked(drawn, rate, dims))
    network.register_forward_pre_hook(Before(drawn))
    network.register_forward_hook(After(drawn))
    with torch.no_grad():
        network(x)
    setattr(network, "noise_shape", (sum(map(math.prod, drawn.shapes)),))  # noqa: B010 (mypy knows no such attribute)
    return True


def _rate(module: nn.Module, name: str) -> tuple[float, int] | None:
    """p of a module that drops in train mode, and the dimensions of an example that its mask has; None of any other."""
    stochastic = type(module).__name__ == "StochasticDepth"  # torchvision's, which is slow to import
    if not module.training or not (stochastic or isinstance(module, nn.modules.dropout._DropoutNd)) or not module.p:
        return None
    other = isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout) or (stochastic and module.mode != "row")
    if other or module.p == 1:
        raise BadInput(f"the network's '{name}' drops at random in a way that is not modelled: call .eval() on it "
                       "before sharing a gradient")  # fmt: skip
    by_channel = isinstance(module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d)
    rate: Any = module.p
    return float(rate), 0 if stochastic else 1 if by_channel else -1
