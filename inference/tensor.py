"""Batches behind a wide layer of random weights, separated by tensors that its gradient is an estimate of (a point).

For z = W x + b, a smooth σ and a layer A σ(z) behind it, with r_b = ∂ℓ/∂(A σ(z_b)) of example b and y_b = [x_b, ρ],

    G = ∂ℓ/∂A = Σ_b r_b σ(W x_b + b)ᵀ                  w_j = [W_j, b_j / ρ] ~ Normal(0, s² I), one row a unit
    E[G_cj He_k(w_j / s)] = Σ_b r_cb λ_kb y_b^{⊗k}     Stein's identity; He_k: Hermite's tensors, λ: of σ's derivatives

and ρ the ratio of the biases' spread to the weights', so that an image's scale is seen, too. Slices of all tensors of
orders 2 to 4 are Σ_b d_b y_b y_bᵀ with the same y_b, the eigenvectors of the quotient of any two of them (Jennrich).
They lie in the span of the batch, in which all this is done, with B numbers a unit: the span of the first layer's
gradient, Σ_b δ_b [x_b, 1]ᵀ, has no error; where only G is looked at, it is the tensors' own (`moments`).
Within it the expectations are coefficients of a regression on Hermite polynomials rather than means, which takes away
the variance that other orders bring. Last, Gauss-Newton steps solve for the y_b and r_b that give this G: exact in that
span. From anywhere else they arrive for a few examples only (`benchmarks/tensor.py`).

An estimate, whose error falls as 1/√units. An even σ has no tensors of odd order and an odd one none of even order;
gelu, silu and softplus are even but for z/2. So their batches are told apart by order 4, for which narrow layers have
too few units, or by what classes make of order 2.

Source: Wang, Lee and Lei, Reconstructing Training Data from Model Gradient, Provably, AISTATS 2023 (Stein's identity
for two-layer networks, span and decomposition of the third-order tensor; the paper was not at hand in full). The span
from the first layer, the regression, the biases and the last step are this file's own, and Jennrich's decomposition
stands for their power method.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Literal, get_args

import pyro
import torch
from torch import Tensor, nn

from pplleak import memory
from pplleak.client import Client
from pplleak.client.loss import require_cross_entropy
from pplleak.density import Model, require_finite
from pplleak.density.first_layer import first_layer, fully_connected, whose
from pplleak.errors import BadInput, unknown
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, in_range, read_off
from pplleak.progress import ProgressBar, silent

Span = Literal["shared", "moments"]
ORDERS = (4, 3, 2)  # the highest tensor, as far as there are units enough for it
ENOUGH = 3  # units for each coefficient of the regression
ISOTROPIC = 1.5  # ratio of the variances of weights in two directions of the span, above which they are not drawn alike
EXPLAINED = 0.1  # of ‖G‖, that the images may leave unexplained
SINGULAR = 1e8  # condition of vectors that are no examples of their own
GAIN = 1e-13  # of the squared error, relative: Gauss-Newton ends there
ELSE = "take inference map"


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    span: Span = "shared",
    tries: int = 64,
    steps: int = 100,
) -> Posterior:
    """The images of a batch as a posterior of one draw; the model is not looked at.

    Args:
        span: of the batch, from the first layer's gradient (shared), or estimated as the tensors are (moments).
        tries: pairs of slices that are decomposed; the eigenvectors that fit all slices best are taken. 0: Gauss-Newton
            begins anywhere.
        steps: of Gauss-Newton, at most; 0 leaves the decomposition as it is.
    """
    if min(tries, steps) < 0:
        raise BadInput(f"tries and steps must be at least 0, not {min(tries, steps)}")
    if span not in get_args(Span):
        raise unknown("span", span, get_args(Span))
    require_cross_entropy(client.loss, "tensor reads labels off")
    require_finite(observed)
    pyro.set_rng_seed(seed)
    size, names = observed.batch_size, fully_connected(client)
    second, activation = behind(client, names)
    rows, outer = first_layer(client, observed.g), client.split(observed.g)[second].double()
    if not outer.any():
        raise BadInput(f"the gradient of '{second}' is 0 throughout, and says nothing: {ELSE}")
    weight, bias = (client.parameters[n].double() for n in names)
    spread = float(weight.square().mean().sqrt())
    ratio = float(bias.square().mean().sqrt()) / spread
    if not ratio > 1e-3:
        raise BadInput(f"the first layer's biases are next to nothing, and tell no image's scale: {ELSE}")
    units, pixels = weight.shape
    needs = {k: ENOUGH * math.comb(size + k, k) for k in ORDERS}
    order = next((k for k in ORDERS if needs[k] <= units), 0)
    if not order or size > pixels:
        raise BadInput(f"tensors of a batch of {size} take a first layer of {needs[ORDERS[-1]]} units, and "
                       f"this one has {units}: {ELSE}")  # fmt: skip
    drawn = torch.cat([weight, bias[:, None] / ratio], 1) / spread
    rows[:, -1] *= ratio
    directions = torch.linalg.svd(rows, full_matrices=False)[2] if span == "shared" else moments(drawn, outer, size)
    basis = directions[:size].mT  # (pixels + 1, B)
    seen = drawn @ basis
    variances = torch.linalg.eigvalsh(seen.mT @ seen / units)
    if not variances[-1] < ISOTROPIC * variances[0] + 3 * math.sqrt(size / units):
        raise BadInput("the first layer's weights are no independent draws of one spread, as before training, and "
                       f"Stein's identity does not hold of them: {ELSE}")  # fmt: skip
    memory.require(8 * units * (3 * math.comb(size + order, order) + 2 * size**2), "the polynomials of a batch", ELSE)
    found = decomposed(slices(seen, outer, order), tries)  # (B, B), a row an example
    lifted = found @ basis.mT
    found = found * (ratio / lifted[:, -1:])
    found, left = solved(found, seen * spread, outer, activation, steps, progress)
    lifted = found @ basis.mT
    x = ratio * lifted[:, :-1] / lifted[:, -1:]
    if not x.isfinite().all():
        raise BadInput(f"the tensors of this gradient have no images: there is noise, or too few units; {ELSE}")
    deltas = torch.linalg.solve(ratio * found / lifted[:, -1:], rows @ basis, left=False).mT
    reasons = [f"{left:.0%} of the next layer's gradient is left unexplained: noise, or images that are none"]
    places, labels = whose(client, in_range(client, x), deltas, names[1], observed.labels, size)
    how = "the tensors that the next layer's gradient estimates"
    return read_off(client, observed, x[places], labels, how, reasons * (left > EXPLAINED))


def behind(client: Client, names: tuple[str, str]) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The name of A, the weight of the layer behind the first one, and σ between them: (…, units) to as many.

    Raises:
        BadInput: that layer is not fully connected, or was not shared; σ has kinks, or is no function of its entries.
    """
    if client.kinks:
        raise BadInput(f"derivatives of the activation have to exist, and {client.kinks[0]} has a kink: take inference "
                       "spear")  # fmt: skip
    network = copy.deepcopy(client.network).double()
    modules = {f"{n}.weight": m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    first, image = modules[names[0]], torch.zeros(1, *client.input_shape, dtype=torch.float64, device=client.device)
    units = first.out_features

    def taken(z: Tensor) -> dict[str, Tensor]:
        """What the linear layers take when the first one puts out z (n, units)."""
        found: dict[str, Tensor] = {}
        hooks = [first.register_forward_hook(lambda *_: z)]
        for name, module in modules.items():
            hooks.append(module.register_forward_pre_hook(lambda _, given, name=name: found.update({name: given[0]})))
        try:
            network(image.expand(len(z), *image.shape[1:]))
        finally:
            for hook in hooks:
                hook.remove()
        return found

    z = torch.linspace(-3, 3, 3 * units, dtype=torch.float64, device=client.device).reshape(3, units)
    after = [n for n in taken(z) if n != names[0]]
    if not after or after[0] not in client.layers or taken(z)[after[0]].shape != z.shape:
        raise BadInput(f"the layer behind the first one is not a fully connected one whose weight is shared: {ELSE}")
    name = after[0]
    if not torch.allclose(taken(z.roll(1, 1))[name], taken(z)[name].roll(1, 1)):
        raise BadInput(f"what is between the first two layers is no activation of each unit by itself: {ELSE}")
    return name, lambda z: taken(z)[name]


def moments(drawn: Tensor, outer: Tensor, size: int) -> Tensor:
    """Directions (at least `size`, pixels + 1) of the span of Σ_b d_b y_b y_bᵀ, as means over the units estimate them:
    of the second-order tensor of every class, or of the third-order one along the first-order one; those of the order
    whose `size` largest singular values stand out more.

    Args:
        drawn: w_j / s, (units, pixels + 1). outer: G, (classes, units).
    """
    outer = outer - outer.mean(1, keepdim=True)
    firsts = outer @ drawn / len(drawn)
    found = []
    for order in (2, 3):
        stack = []
        for g, v in zip(outer, torch.nn.functional.normalize(firsts, dim=1), strict=True):
            along = drawn @ v if order == 3 else torch.ones_like(g)
            matrix = (drawn * (g * along)[:, None]).mT @ drawn / len(drawn)
            matrix -= (g * along).mean() * torch.eye(len(matrix)).to(matrix)
            if order == 3:
                cross = torch.outer(g @ drawn / len(drawn), v)
                matrix -= cross + cross.mT
            stack.append(matrix)
        _, values, directions = torch.linalg.svd(torch.cat(stack), full_matrices=False)
        found.append((float(values[size - 1] / values[min(size, len(values) - 1)]), directions))
    return max(found, key=lambda f: f[0])[1]


def slices(seen: Tensor, outer: Tensor, order: int) -> Tensor:
    """Matrices (K, B, B), each of them Σ_b d_b y_b y_bᵀ and an error of about one size.

    Args:
        seen: w_j / s in the span, (units, B). outer: G, (classes, units). order: of the highest tensor, at least 2.
    """
    units, size = seen.shape
    hermite = [torch.ones_like(seen), seen]
    for n in range(1, order):
        hermite.append(seen * hermite[n] - n * hermite[n - 1])
    indices = [i for k in range(order + 1) for i in itertools.combinations_with_replacement(range(size), k)]
    polynomials, sizes = torch.ones(units, len(indices)).to(seen), torch.ones(len(indices)).to(seen)
    for place, index in enumerate(indices):
        for axis, n in Counter(index).items():
            polynomials[:, place] *= hermite[n][:, axis]
            sizes[place] *= math.factorial(n)
    coefficients = torch.linalg.lstsq(polynomials / sizes.sqrt(), outer.mT, driver="gelsd").solution
    noise = (outer.mT - polynomials / sizes.sqrt() @ coefficients).square().mean(0).sqrt()  # of each class
    tensors = sizes.sqrt()[:, None] * coefficients / noise.clamp(min=1e-12 * float(outer.abs().max()))
    places = {index: k for k, index in enumerate(indices)}
    grid = list(itertools.product(range(size), repeat=2))
    found = []
    for rest in (i for k in range(order - 1) for i in itertools.combinations_with_replacement(range(size), k)):
        picked = [places[tuple(sorted((*pair, *rest)))] for pair in grid]
        alike = math.prod(math.factorial(n) for n in Counter(rest).values())
        found.append(tensors[picked].mT.reshape(-1, size, size) / math.sqrt(math.factorial(len(rest) + 2) * alike))
    return torch.cat(found)


def decomposed(matrices: Tensor, tries: int) -> Tensor:
    """y (B, B), a row an example, each up to a factor: with which matrices (K, B, B) are nearest to Σ_b d_b y_b y_bᵀ.

    Of two such sums, P Q⁻¹ has the eigenvectors y_b (Jennrich). Tried on random mixtures of the leading ones.
    """
    size = matrices.shape[1]
    _, strengths, mixtures = torch.linalg.svd(matrices.flatten(1), full_matrices=False)
    leading = (strengths[:size, None] * mixtures[:size]).reshape(-1, size, size)
    leading = (leading + leading.mT) / 2
    best, found = math.inf, torch.randn(size, size).to(matrices)
    for _ in range(tries):
        p, q = torch.einsum("tk,kab->tab", torch.randn(2, len(leading)).to(leading), leading)
        _, vectors = torch.linalg.eig(torch.linalg.solve(q, p, left=False))
        y = torch.nn.functional.normalize(vectors.real, dim=0)
        outers, flat = torch.einsum("ab,cb->bac", y, y).flatten(1), leading.flatten(1)
        left = float((flat - torch.linalg.lstsq(outers.mT, flat.mT).solution.mT @ outers).norm())
        if left < best and torch.linalg.cond(y) < SINGULAR:
            best, found = left, y.mT
    return found


def solved(
    y: Tensor, seen: Tensor, outer: Tensor, activation: Callable[[Tensor], Tensor], steps: int, progress: ProgressBar
) -> tuple[Tensor, float]:
    """y (B, B) and what is left of ‖G‖: least squares of G = Σ_b r_b σ(seen y_b)ᵀ in y and r, by damped
    Gauss-Newton steps (Levenberg-Marquardt).

    Args:
        y: where it begins. seen: w_j in the span, (units, B). outer: G, (classes, units).
    """
    size, classes = len(y), len(outer)

    def at(y: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        """What the best r leave of G, squared; σ and σ' (units, B), and those r (B, classes)."""
        with torch.enable_grad():
            z = (y @ seen.mT).requires_grad_()
            s = activation(z)
            (slope,) = torch.autograd.grad(s.sum(), z)
        s = s.detach().mT
        r = torch.linalg.lstsq(s, outer.mT).solution
        return float((outer.mT - s @ r).square().sum()), s, slope.mT, r

    (error, s, slope, r), damping = at(y), 1e-3
    for _ in progress("steps", steps):
        rest = outer.mT - s @ r
        moved = torch.einsum("ji,ja->jia", slope, seen).flatten(1)  # ∂σ(z_ji) / ∂y_ia, (units, B·B)
        yy = (moved.mT @ moved) * (r @ r.mT).repeat_interleave(size, 0).repeat_interleave(size, 1)
        yr = torch.einsum("iak,ic->iakc", (moved.mT @ s).reshape(size, size, size), r).reshape(size * size, -1)
        rr = torch.kron(s.mT @ s, torch.eye(classes).to(s))
        normal = torch.cat([torch.cat([yy, yr], 1), torch.cat([yr.mT, rr], 1)])
        down = torch.einsum("iac,ic->ia", (moved.mT @ rest).reshape(size, size, classes), r)
        down = torch.cat([down.flatten(), (s.mT @ rest).flatten()])
        gained = False
        while damping < 1e8:
            damped = normal + damping * torch.diag(normal.diagonal())
            step = torch.linalg.lstsq(damped, down[:, None]).solution[: size * size, 0].reshape(size, size)
            now, *parts = at(y + step)
            if now < error:
                gained = error - now > GAIN * error
                y, error, (s, slope, r), damping = y + step, now, parts, damping / 5
                break
            damping *= 4
        if not gained:
            break
    return y, math.sqrt(error / float(outer.square().sum()))


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
