"""ReLU and leaky-ReLU perceptrons, whose gradient-leakage posterior is smooth on every side of every kink.

With the activation pattern (the masks) held fixed, every pre-activation is affine in the input x:

    h₁ = W₁x + b₁      a_l = s_l ∘ h_l      h_{l+1} = W_{l+1} a_l + b_{l+1}      s_l = 1 where h_l > 0, else the leak
    δ_K = softmax(h_K) − onehot(y)          δ_l = s_l ∘ W_{l+1}ᵀ δ_{l+1}

and the energy −log p(g | x, y) = ‖g − u(x, y)‖² / 2σ², with u the rows δ_l a_{l−1}ᵀ and δ_l, is

    2σ² Φ = Σ_l ‖δ_l‖² (‖a_{l−1}‖² + 1) − 2 δ_l·(G_l a_{l−1} + γ_l)  + constant,     a₀ = x,   (G, γ) = g

It sees x through h₁, q = G₁x + γ₁ and s = ‖x‖² alone, so a sampler that keeps these three never touches the pixels.
At a kink of unit j (h_j = 0) the activations do not change, only δ_j switches; see `Perceptron.jump`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pplleak.client import Client
from pplleak.client.loss import require_cross_entropy
from pplleak.errors import BadInput


@dataclass(frozen=True, eq=False)
class Layer:
    """One Linear layer and what was shared of its gradient; a frozen parameter counts 0 and its g is 0.

    weight, g_weight (fan_out, fan_in);  bias, g_bias (fan_out,)
    """

    weight: Tensor
    bias: Tensor
    g_weight: Tensor
    g_bias: Tensor
    counts_weight: float
    counts_bias: float

    def pull(self, a: Tensor) -> Tensor:
        """G a + γ, (chains, fan_out)."""
        return a @ self.g_weight.mT + self.g_bias

    def scale(self, sqnorm: Tensor) -> Tensor:
        """‖a‖² + 1: what ‖δ‖² is multiplied with in ‖(δ aᵀ, δ)‖²."""
        return self.counts_weight * sqnorm + self.counts_bias


@dataclass(frozen=True, eq=False)
class Perceptron:
    """The client's network with the observation built in; all tensors float64.

    layers  K Linear layers;  leaks  K − 1 slopes below zero;  label y;  sigma σ
    """

    layers: tuple[Layer, ...]
    leaks: tuple[float, ...]
    label: int
    sigma: float

    @property
    def widths(self) -> list[int]:
        return [len(layer.bias) for layer in self.layers[:-1]]

    def slopes(self, masks: Tensor) -> list[Tensor]:
        """masks (chains, units), True where h > 0 -> s_l (chains, width) for every hidden layer."""
        parts = masks.split(self.widths, 1)
        return [leak + (1 - leak) * m.to(torch.float64) for leak, m in zip(self.leaks, parts, strict=True)]

    def preactivations(self, h: Tensor, masks: Tensor) -> Tensor:
        """h_1 … h_{K−1} side by side, (chains, units), from h_1 (chains, width₁) under the pattern `masks`."""
        if len(self.widths) == 1:
            return h
        hs = [h]
        for s, layer in zip(self.slopes(masks), self.layers[1:-1], strict=False):
            hs.append((s * hs[-1]) @ layer.weight.mT + layer.bias)
        return torch.cat(hs, 1)

    def rates(self, dh: Tensor, masks: Tensor) -> Tensor:
        """ḣ_1 … ḣ_{K−1} side by side from ḣ_1: the same maps without their biases."""
        if len(self.widths) == 1:
            return dh
        rates = [dh]
        for s, layer in zip(self.slopes(masks), self.layers[1:-1], strict=False):
            rates.append((s * rates[-1]) @ layer.weight.mT)
        return torch.cat(rates, 1)

    def pattern(self, h: Tensor) -> Tensor:
        """The masks that agree with h_1, (chains, units) bool."""
        masks = []
        for leak, layer in zip(self.leaks, self.layers[1:], strict=True):
            masks.append(h > 0)
            h = torch.where(masks[-1], h, leak * h) @ layer.weight.mT + layer.bias
        return torch.cat(masks, 1)

    def energy(self, h: Tensor, q: Tensor, sqnorm: Tensor, masks: Tensor) -> Tensor:
        """Φ (chains,), up to its constant, with the masks held fixed.

        Args:
            h: (chains, width₁), h_1.  q: (chains, width₁), G₁x + γ₁.  sqnorm: (chains,), ‖x‖².
            masks: (chains, units) bool.
        """
        slopes, pulls, scales = self.slopes(masks), [q], [self.layers[0].scale(sqnorm)]
        for s, layer in zip(slopes, self.layers[1:], strict=True):
            a = s * h
            pulls.append(layer.pull(a))
            scales.append(layer.scale(a.square().sum(1)))
            h = a @ layer.weight.mT + layer.bias
        delta = self._output_delta(h)
        total = torch.zeros_like(sqnorm)
        for k in reversed(range(len(self.layers))):
            total = total + delta.square().sum(1) * scales[k] - 2 * (delta * pulls[k]).sum(1)
            if k:
                delta = slopes[k - 1] * (delta @ self.layers[k].weight)
        return total / (2 * self.sigma**2)

    def _output_delta(self, logits: Tensor) -> Tensor:
        delta = logits.softmax(1)
        onehot = torch.zeros_like(delta)
        onehot[:, self.label] = 1
        return delta - onehot

    def jump(self, h: Tensor, q: Tensor, sqnorm: Tensor, masks: Tensor, unit: Tensor) -> Tensor:
        """ΔΦ (chains,) of flipping one unit's mask at its kink; `unit` (chains,) counts through all hidden layers.

        One hidden layer: δ_j goes from s v_j to s' v_j, with v = W₂ᵀ δ₂, so
            2σ² ΔΦ = (s'² − s²) v_j² (‖x‖² + 1) − 2 (s' − s) v_j q_j
        Deeper: the energies of the two patterns are subtracted.
        """
        if len(self.layers) > 2:
            return self.energy(h, q, sqnorm, flipped(masks, unit)) - self.energy(h, q, sqnorm, masks)
        (leak,), (first, last) = self.leaks, self.layers
        delta = self._output_delta(torch.where(masks, h, leak * h) @ last.weight.mT + last.bias)
        at = unit[:, None]
        v = (delta * last.weight.mT[unit]).sum(1)
        before = leak + (1 - leak) * masks.gather(1, at)[:, 0].to(v)
        after = 1 + leak - before
        quadratic = (after.square() - before.square()) * v.square() * first.scale(sqnorm)
        return (quadratic - 2 * (after - before) * v * q.gather(1, at)[:, 0]) / (2 * self.sigma**2)

    def normal(self, masks: Tensor, unit: Tensor) -> Tensor:
        """The row r (chains, width₁) with ḣ_unit = r·ḣ_1: a kink's normal, seen from the first layer."""
        if len(self.widths) == 1:
            return torch.zeros(masks.shape, dtype=torch.float64, device=masks.device).scatter_(1, unit[:, None], 1.0)
        starts = [0]
        for width in self.widths:
            starts.append(starts[-1] + width)
        slopes = self.slopes(masks)
        out = torch.zeros(len(masks), self.widths[0], dtype=torch.float64, device=masks.device)
        for k in range(len(self.widths)):
            here = ((unit >= starts[k]) & (unit < starts[k + 1])).nonzero()[:, 0]
            if k == 0:
                out[here, unit[here]] = 1
                continue
            row = self.layers[k].weight[unit[here] - starts[k]]
            for back in reversed(range(k)):
                row = row * slopes[back][here]
                if back:
                    row = row @ self.layers[back].weight
            out[here] = row
        return out

    def deltas_and_activations(self, h: Tensor, masks: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(δ_1 … δ_K) and (a_1 … a_{K−1}) of one input h (width₁,) with masks (units,) held fixed."""
        h, masks = h[None], masks[None]
        slopes, activations = self.slopes(masks), []
        for s, layer in zip(slopes, self.layers[1:], strict=True):
            activations.append(s * h)
            h = activations[-1] @ layer.weight.mT + layer.bias
        deltas = [self._output_delta(h)]
        for s, layer in zip(reversed(slopes), reversed(self.layers[1:]), strict=True):
            deltas.insert(0, s * (deltas[0] @ layer.weight))
        return [d[0] for d in deltas], [a[0] for a in activations]


def flipped(masks: Tensor, unit: Tensor) -> Tensor:
    """`masks` (chains, units) with one unit (chains,) of every chain flipped."""
    at = unit[:, None]
    return masks.scatter(1, at, ~masks.gather(1, at))


def read(client: Client, g: Tensor, label: int, sigma: float) -> Perceptron:
    """The client's network as a Perceptron.

    Raises:
        BadInput: the network is not Linear layers with ReLU or leaky ReLU between them.
    """
    needs = "inference refractive needs a stack of Linear layers with ReLU or LeakyReLU between them"
    if client.local:
        raise BadInput("inference refractive needs a client that shares its gradient, and this one trains locally")
    require_cross_entropy(client.loss, "inference refractive knows")
    if not isinstance(client.network, nn.Sequential):
        raise BadInput(f"{needs}, but the network is a {type(client.network).__name__}: use hmc on a smooth network")
    if client.network._forward_pre_hooks:
        raise BadInput(f"{needs}, and nothing before them: this one normalises its inputs")
    chain = [(n, m) for n, m in client.network.named_modules() if not isinstance(m, nn.Sequential)]
    try:
        return stack(chain, client.split(g.to(torch.float64)), label, sigma)
    except NoStack as error:
        raise BadInput(f"{needs}, {error}: inference billiard takes ReLU, leaky ReLU and max pooling in any "
                       "network" if error.foreign else f"{needs}, {error}") from error  # fmt: skip


class NoStack(ValueError):
    """Modules that are no Linear layers with rectifiers between them; foreign: one of them is of another kind."""

    def __init__(self, why: str, foreign: bool = False) -> None:
        super().__init__(why)
        self.foreign = foreign


def stack(chain: Iterable[tuple[str, nn.Module]], shared: dict[str, Tensor], label: int, sigma: float) -> Perceptron:
    """Modules and their names, in the order in which they are called, and what was shared of their gradients.

    Raises:
        NoStack: they are not Linear layers with ReLU or leaky ReLU between them.
    """
    layers: list[Layer] = []
    leaks: list[float] = []
    for name, module in chain:
        if isinstance(module, nn.Linear) and len(layers) == len(leaks):
            weight = module.weight.detach().double()
            bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
            g_weight, g_bias = shared.get(f"{name}.weight"), shared.get(f"{name}.bias")
            layers.append(
                Layer(
                    weight,
                    bias,
                    torch.zeros_like(weight) if g_weight is None else g_weight,
                    torch.zeros_like(bias) if g_bias is None else g_bias,
                    float(g_weight is not None),
                    float(g_bias is not None),
                )
            )
        elif isinstance(module, (nn.ReLU, nn.LeakyReLU)) and len(layers) == len(leaks) + 1:
            leaks.append(float(getattr(module, "negative_slope", 0.0)))
        elif not isinstance(module, (nn.Flatten, nn.Identity, nn.Dropout)) or (
            layers and isinstance(module, nn.Flatten)
        ):
            raise NoStack(f"but this one holds a {type(module).__name__} ('{name}')", foreign=True)
    if not leaks or len(layers) != len(leaks) + 1:
        raise NoStack("ending in a Linear layer, with at least one of each")
    return Perceptron(tuple(layers), tuple(leaks), label, sigma)
