"""A mixture of Gaussians over small patches (EPLL): a prior for photographs, known up to its normaliser only."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pyro
import torch
from torch import Tensor, nn

from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._fitting import apart, flat
from pplleak.priors._store import trained
from pplleak.priors.gmrf import grid
from pplleak.priors.uniform import Box
from pplleak.priors.uniform import prior as box
from pplleak.progress import ProgressBar, silent

FEWEST = 1e-3  # patches that even a component has that none belongs to


@dataclass(frozen=True)
class Window:
    """A kind of tile that the border may cut: the `rows` and `columns` of it that are seen, and where in the image
    these begin, downwards and to the right."""

    rows: range
    columns: range
    down: tuple[int, ...]
    right: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Patches:
    """log p(x) = (1/T) Σ over tilings t, Σ over their tiles i of log Σ_k weights_k Normal(x_i; means_k, C_k) − log Z

    The expected patch log-likelihood (Zoran & Weiss 2011, eq. 2 and 3): patches `side` × `side` of all colours, at
    every `stride`-th pixel, each pixel in T = (side / stride)² of them. Patches that the border cuts count with the
    exact density of what is seen of them, so that those that share an offset tile the image, with a normalised density
    for each tiling. Their geometric mean has Z ≤ 1 (Hölder): without Z, `log_prob` bounds the log-density from below.

    weights (components,); means (components, channels · side²); roots: Cholesky factors of the C_k
    """

    weights: Tensor
    means: Tensor
    roots: Tensor
    side: int
    stride: int
    input_shape: tuple[int, ...]

    bound: ClassVar[bool] = True  # log_prob lies below the log-density

    def energy(self, x: Tensor) -> Tensor:
        """−log p(x) − log Z for x (*chains, batch, *input_shape), summed over the batch; (*chains,)."""
        return -self.each(x).sum(-1)

    def each(self, x: Tensor) -> Tensor:
        """log p(x) + log Z of every image of x (…, *input_shape); (…,)."""
        total = x.new_zeros(x.shape[:-3])
        for window, maps, offsets, logs in self._laws:
            seen = self.seen(x, window).flatten(-3)
            z = (seen @ maps.to(x) - offsets.to(x)).unflatten(-1, (len(self.weights), -1))
            total = total + (logs.to(x) - 0.5 * z.square().sum(-1)).logsumexp(-1).sum((-2, -1))
        return total * (self.stride / self.side) ** 2

    def seen(self, x: Tensor, window: Window) -> Tensor:
        """What x (…, *input_shape) shows in all tiles of a kind, (…, down, right, channels, rows, columns)."""
        for part, at in ((window.rows, window.down), (window.columns, window.right)):  # each comes to lie at -2
            x = x.narrow(-2, at[0], at[-1] - at[0] + len(part)).unfold(-2, len(part), self.stride)
        return x.movedim(-5, -3)

    @cached_property
    def _laws(self) -> list[tuple[Window, Tensor, Tensor, Tensor]]:
        """Of every kind of window: what maps its pixels to the standard normal coordinates of all components, side by
        side, (pixels, components · pixels), the coordinates of the means, and the logarithms of what stands before."""
        covariances = (self.roots @ self.roots.mT).double()
        cells = torch.arange(self.means.shape[1]).reshape(-1, self.side, self.side)
        found = []
        for window in self.windows():
            seen = cells[:, window.rows.start : window.rows.stop, window.columns.start : window.columns.stop].flatten()
            root = torch.linalg.cholesky(covariances[:, seen][:, :, seen])
            inverse = torch.linalg.solve_triangular(root, torch.eye(len(seen)).to(root), upper=False)
            offsets = (inverse @ self.means.double()[:, seen, None])[..., 0]
            logs = self.weights.double().log() - root.diagonal(0, 1, 2).log().sum(-1)
            logs = logs - 0.5 * len(seen) * math.log(2 * math.pi)
            law = inverse.permute(2, 0, 1).flatten(1), offsets.flatten(), logs
            found.append((window, *(t.to(self.means.dtype) for t in law)))
        return found

    def windows(self) -> list[Window]:
        """Every kind of tile, whole or cut, with its places in the image."""
        rows, columns = (self._cut(size) for size in self.input_shape[1:])
        return [Window(r, c, down, right) for (r, down), (c, right) in itertools.product(rows.items(), columns.items())]

    def _cut(self, size: int) -> dict[range, tuple[int, ...]]:
        """Along a side of the image: which pixels of a tile are seen, and the places where it is these."""
        found: dict[range, tuple[int, ...]] = {}
        for begin in range(self.stride - self.side, size, self.stride):
            part = range(max(0, -begin), min(self.side, size - begin))
            found[part] = (*found.get(part, ()), max(0, begin))
        return found

    def log_prob(self, x: Tensor) -> Tensor:
        """A bound from below on log p(x) for x (N, *input_shape), by −log Z ≥ 0; (N,), float64."""
        with torch.no_grad():
            return torch.cat([self.each(part.double()) for part in x.split(20)])

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it."""
        return {"weights": self.weights, "means": self.means, "roots": self.roots,
                "sizes": self.means.new_tensor([self.side, self.stride, *self.input_shape])}  # fmt: skip


@dataclass(frozen=True, eq=False)
class OnBox:
    """p(x) ∝ exp(−energy(x)) on the pixel box: the patches multiplied onto the flat prior, for a model."""

    base: Box
    patches: Patches

    bound: ClassVar[bool] = True  # log_prob lies below the log-density

    def sample(self, batch_size: int = 1) -> Tensor:
        """Site x (*chains, batch_size, *input_shape) and the factor patches.

        Pyro ignores factors where nothing is observed: unconditioned draws are those of the flat prior.
        """
        x = self.base.sample(batch_size)
        pyro.factor("patches", -self.patches.energy(x))
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """A bound from below on log p(x) for x (N, *input_shape) in the box, with a smaller Z still; (N,), float64."""
        return self.patches.log_prob(x)


def prior(like: Like, *, reference: str | Tensor = "digits", file: str = "") -> OnBox:
    """The fitted patches of a file, or some that are fitted to public images, once, and kept, on the box of the
    client's images.

    Args:
        reference: the public images that they are fitted to where no file is named: a name or a folder of
            `pplleak.data`, or a tensor of them.
        file: patches of `pplleak prior fit patches`, by name or path.
    """
    shape = tuple(like.input_shape)
    fitted: Patches = trained("patches", file, reference, shape, like.dtype, like.device)
    return OnBox(box(like), fitted)


def fit(
    images: Tensor,
    *,
    components: int = 40,
    side: int = 6,
    stride: int = 2,
    patches: int = 40_000,
    floor: float = 0.02,
    epochs: int = 20,
    seed: int = 0,
    progress: ProgressBar = silent,
) -> Patches:
    """Expectation maximisation on patches of the images.

    It begins with patches that belong together by their shape: each with the one of `components` patches that it is
    nearest to in angle, bright or dark alike, the mean colour taken out.

    Args:
        images: (N, channels, rows, columns), pixels in [0, 1].
        components: Gaussians in the mixture.
        side: of a patch, in pixels; of smaller images, their own.
        stride: pixels between neighbouring patches; where it does not divide the side, the next smaller that does.
        patches: how many are looked at, taken anywhere.
        floor: standard deviation, in pixel units, that every direction of a component keeps.
        epochs: steps of expectation maximisation.
    """
    require_positive(components=components, side=side, stride=stride, patches=patches, floor=floor, epochs=epochs)
    shape = grid(tuple(images.shape[1:]), "patches")
    x = flat(images, "patches").float().unflatten(1, shape)
    side = min(side, *shape[1:])
    stride = max(n for n in range(1, min(stride, side) + 1) if side % n == 0)
    with apart(seed), torch.no_grad():
        seen = _anywhere(x, side, patches)
        weights, means, covariances = _moments(seen, _alike(seen, min(components, len(seen)), shape[0]), floor)
        for _ in progress("EM", epochs):
            roots = torch.linalg.cholesky(covariances)
            logs = [_joint(part, weights, means, roots).softmax(-1) for part in seen.split(4096)]
            weights, means, covariances = _moments(seen, torch.cat(logs), floor)
    return Patches(weights, means, torch.linalg.cholesky(covariances), side, stride, shape)


def _anywhere(x: Tensor, side: int, count: int) -> Tensor:
    """Patches of images x (N, channels, rows, columns), drawn uniformly, (count, channels · side²)."""
    n = torch.randint(len(x), (count,))
    i, j = (torch.randint(size - side + 1, (count, 1, 1)) for size in x.shape[2:])
    along = torch.arange(side)
    return x[n[:, None, None], :, i + along[:, None], j + along].movedim(-1, 1).flatten(1)


def _alike(seen: Tensor, count: int, channels: int) -> Tensor:
    """To which of `count` of the patches each is nearest in angle, (patches, count), ones and zeros."""
    plain = seen.unflatten(1, (channels, -1))
    plain = nn.functional.normalize((plain - plain.mean(-1, keepdim=True)).flatten(1), dim=1)
    nearest = (plain @ plain[torch.randperm(len(plain))[:count]].mT).abs().argmax(1)
    return nn.functional.one_hot(nearest, count).to(seen)


def _joint(x: Tensor, weights: Tensor, means: Tensor, roots: Tensor) -> Tensor:
    """log weights_k Normal(x; means_k, roots_k roots_kᵀ) + constant for x (N, pixels), (N, components)."""
    inverse = torch.linalg.solve_triangular(roots, torch.eye(x.shape[1]).to(x), upper=False)
    offsets = (inverse @ means[..., None])[..., 0].flatten()
    z = (x @ inverse.permute(2, 0, 1).flatten(1) - offsets).unflatten(-1, (len(means), -1))
    return weights.log() - roots.diagonal(0, 1, 2).log().sum(-1) - 0.5 * z.square().sum(-1)


def _moments(x: Tensor, belongs: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of patches x (N, pixels) that belong to each component by so much, (N, K)."""
    counts = belongs.sum(0) + FEWEST
    means = belongs.mT @ x / counts[:, None]
    square = torch.stack([(x * r[:, None]).mT @ x / n for r, n in zip(belongs.mT, counts, strict=True)])
    ridge = floor**2 * torch.eye(x.shape[1]).to(x)
    return counts / counts.sum(), means, square - means[:, :, None] * means[:, None, :] + ridge


def restore(tensors: dict[str, Tensor], input_shape: tuple[int, ...], dtype: torch.dtype) -> Patches:
    """The prior that `tensors()` came from, in precision `dtype`; raises BadInput where they are no such patches."""
    weights, means, roots = (tensors[n].double() for n in ("weights", "means", "roots"))
    side, stride, *whole = (int(n) for n in tensors["sizes"])
    shape = grid(input_shape, "patches")
    count, pixels = means.shape
    if weights.shape != (count,) or roots.shape != (count, pixels, pixels) or pixels != shape[0] * side**2:
        raise BadInput("the tensors of its patches do not fit each other")
    if tuple(whole) != shape or not 0 < side <= min(shape[1:]) or not 0 < stride <= side or side % stride:
        raise BadInput(f"patches of {side} pixels at every {stride} do not tile images {shape}")
    if float(weights.min()) <= 0 or abs(float(weights.sum()) - 1) > 1e-3 or float(roots.diagonal(0, 1, 2).min()) <= 0:
        raise BadInput("its weights are no probabilities, or a component has no width")
    return Patches((weights / weights.sum()).to(dtype), means.to(dtype), roots.tril().to(dtype), side, stride, shape)
