"""R-GAP: one example, layer by layer from the loss back to the pixels, in closed form (a point).

For the layers z_i = W_i x_i + b_i, x_{i+1} = σ(z_i) of a network, with k_i = ∂ℓ/∂z_i, one example fulfils two sets of
linear equations for what a layer took,

    W_i x_i = z_i − b_i          z_i = σ⁻¹(x_{i+1}), from the layer after it         (weight constraints)
    K_i x_i = ∂ℓ/∂W_i            K_i: x ↦ the gradient of ⟨k_i, W_i x⟩ in W_i        (gradient constraints)

It begins at the last layer, whose k is ∂ℓ/∂b as it was shared, solves for x_i by least squares, and goes on with
k_{i−1} = σ'(z_{i−1}) ⊙ W_iᵀ k_i. A fully connected layer has K_i x = k_i xᵀ, which is enough by itself; a convolution
needs both sets, and where they leave a direction of x_i open (the paper's rank analysis), that is said. σ has to be
invertible: it is inverted by bisection, whatever it is called. No prior and no search; every layer multiplies the error
of the one after it, so that noise is not survived for long.

Source: Zhu and Blaschko, R-GAP: Recursive Gradient Attack on Privacy, ICLR 2021, section 3 (both sets of equations, the
recursion, rank analysis). Their networks have no biases, and k of the last layer from the loss; here the bias tells it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor, nn

from pplleak import memory
from pplleak.client import Client
from pplleak.density import Model, label_rules, require_finite
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, read_off
from pplleak.progress import ProgressBar, silent

AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HALVINGS = 120  # of an interval that holds σ⁻¹: down to neighbouring floating-point numbers
ELSE = "take inference map or hmc"


@dataclass(frozen=True, eq=False)
class Step:
    """A module of the network in float64, the shape of what it takes (of one example), and the shared gradient of its
    weight and bias, where it has these."""

    module: nn.Module
    taken: torch.Size
    weight: Tensor | None = None
    bias: Tensor | None = None


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    rank: float = 1e-10,
) -> Posterior:
    """The image as a posterior of one draw; the model is not looked at.

    Args:
        rank: least singular value of a layer's equations, of the largest, below which they leave a direction open.
    """
    require_positive(rank=rank)
    require_finite(observed)
    pyro.set_rng_seed(seed)
    if observed.batch_size != 1:
        raise BadInput(f"rgap solves for one example, and this is a batch of {observed.batch_size}: {ELSE}, or spear")
    if client.local is not None:
        raise BadInput(f"rgap solves one gradient, and this client shares local training: {ELSE}")
    *before, last = steps(client, observed.g)
    if last.bias is None or not isinstance(last.module, nn.Linear):
        raise BadInput(
            f"rgap begins at the bias of a fully connected last layer, and the network ends in another: {ELSE}"
        )
    k = last.bias
    if not k.abs().max() > 1e-150:
        raise BadInput(f"the gradient of the last layer is zero: the loss has nothing left to say; {ELSE}")
    assert last.weight is not None
    x, k = last.weight.mT @ k / k.square().sum(), k @ last.module.weight.detach()
    for done in progress("layers", len(before)):
        step = before[-1 - done]
        if isinstance(step.module, nn.Flatten):
            x, k = x.reshape(step.taken), k.reshape(step.taken)
        elif isinstance(step.module, AFFINE):
            x, k = solved(step, x, k, rank), _pulled_back(step.module, torch.zeros(step.taken).to(x), k)
        else:
            x = inverse(step.module, x)
            k = _pulled_back(step.module, x, k)
        if not x.isfinite().all() or not k.abs().max() > 0:
            raise BadInput(f"what comes after a {type(step.module).__name__} says more than it can give: with so much "
                           f"noise there is no way back through it; {ELSE}")  # fmt: skip
    labels = observed.labels if observed.labels is not None else label_rules.of_one(client, observed)
    return read_off(client, observed, x[None], labels, "the equations of every layer, from the last to the first")


def steps(client: Client, g: Tensor) -> list[Step]:
    """The modules of a network that is a plain sequence, with what was shared of each.

    Raises:
        BadInput: a network that branches; a module that is neither affine nor invertible entry by entry; a weight that
            was not shared.
    """
    shared = {n: t.double() for n, t in client.split(g).items()}
    names = {id(p): n for n, p in client.network.named_parameters(remove_duplicate=False)}
    found, probe = [], torch.rand(1, *client.input_shape, generator=torch.Generator().manual_seed(0))
    x = probe.to(client.device, torch.float64)
    for module in _leaves(client.network):
        own = copy.deepcopy(module).double().requires_grad_()
        parts = {n: names.get(id(p), "") for n, p in module.named_parameters()}
        if isinstance(own, AFFINE):
            if missing := [n for n in parts.values() if n not in shared]:
                raise BadInput(f"rgap solves for every layer, and '{missing[0]}' was not shared: {ELSE}")
        elif parts or not (isinstance(own, nn.Flatten) or invertible(own)):
            raise BadInput(f"rgap goes back through affine layers and invertible activations, and the network has a "
                           f"{type(module).__name__}: {ELSE}")  # fmt: skip
        given = [shared.get(parts.get(n, "")) for n in ("weight", "bias")]
        found.append(Step(own, x.shape[1:], *given))
        with torch.no_grad():
            x = own(x)
    with torch.no_grad():
        whole = client.network(probe.to(client.device, client.dtype)).double()
    if whole.shape != x.shape or not torch.allclose(whole, x, rtol=1e-3, atol=1e-5):
        raise BadInput(f"rgap goes back through a plain sequence of modules, and the network does more: {ELSE}")
    return found


def _leaves(module: nn.Module) -> list[nn.Module]:
    """The modules of nested sequences in their order, one that stands there twice two times."""
    if isinstance(module, nn.Sequential):
        return [leaf for child in module for leaf in _leaves(child)]
    return [module]


def invertible(module: nn.Module) -> bool:
    """True of a function that takes its entries one by one, and rises everywhere (as far as a grid shows)."""
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    try:
        with torch.no_grad():
            y, turned, few = module(grid), module(grid.flip(0)), module(grid[None, :5])
    except (RuntimeError, ValueError, IndexError):  # it takes images, not numbers
        return False
    one_by_one = y.shape == grid.shape and torch.allclose(turned.flip(0), y) and torch.allclose(few[0], y[:5])
    return one_by_one and bool((y.diff() > 0).all())


@torch.no_grad()
def inverse(module: nn.Module, y: Tensor) -> Tensor:
    """σ⁻¹(y), in float64; y that σ never takes (of noise) is given the end of a wide interval."""
    low, high = -torch.ones_like(y), torch.ones_like(y)
    for _ in range(20):  # a million: sums of pixels do not get there
        low = torch.where(module(low) > y, 2 * low, low)
        high = torch.where(module(high) < y, 2 * high, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = module(middle) < y
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _pulled_back(module: nn.Module, x: Tensor, k: Tensor) -> Tensor:
    """∂ℓ/∂x of an example from k = ∂ℓ/∂module(x)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(module(x[None])[0], x, k)[0]


@torch.no_grad()
def solved(step: Step, z: Tensor, k: Tensor, rank: float) -> Tensor:
    """The x of a layer whose output z and slope k are known, by least squares of both sets of equations.

    Raises:
        BadInput: they leave a direction of x open.
    """
    module, gradient, size = step.module, step.weight, step.taken.numel()
    assert gradient is not None and isinstance(module.weight, Tensor)
    rows = k.numel() + (size if isinstance(module, nn.Linear) else gradient.numel())
    memory.require(24 * size * rows, f"rgap's equations of a {type(module).__name__}", ELSE)
    units = torch.eye(size, dtype=torch.float64, device=z.device).reshape(size, *step.taken)
    constant = module(torch.zeros_like(units[:1]))
    weights = (module(units) - constant).flatten(1).mT
    if isinstance(module, nn.Linear):  # k xᵀ = G has the same solutions as ‖k‖ x = Gᵀ k / ‖k‖
        scale = k.norm().clamp(min=torch.finfo(k.dtype).tiny)
        slopes, wanted = scale * units, gradient.mT @ k / scale
    else:
        slopes, wanted = torch.stack([_gradient(module, x, k) for x in units], 1), gradient.flatten()
    heavy = weights.norm() / slopes.norm().clamp(min=torch.finfo(k.dtype).tiny)  # so that both count alike
    a, b = torch.cat([weights, heavy * slopes]), torch.cat([(z - constant[0]).flatten(), heavy * wanted])
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    if open_ := int((s < rank * s[0]).sum()) + max(0, size - len(a)):
        raise BadInput(f"the gradient of a {type(module).__name__} leaves {open_} of the {size} entries open that it "
                       f"took: {ELSE}")  # fmt: skip
    return (vh.mT @ ((u.mT @ b) / s)).reshape(step.taken)


def _gradient(module: nn.Module, x: Tensor, k: Tensor) -> Tensor:
    """The gradient of ⟨k, module(x)⟩ in the module's weight, flat; linear in x."""
    with torch.enable_grad():
        weight = module.weight
        assert isinstance(weight, Tensor)
        return torch.autograd.grad(module(x[None])[0], weight, k)[0].flatten()


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
