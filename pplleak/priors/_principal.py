"""The covariance of images by its principal components, and a square root of it without a matrix of pixels²."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from pplleak import memory
from pplleak.errors import BadInput

DENSE = 4096  # pixels up to which the covariance itself is factorised,
SMALL = 1024  # and of images of more than these, only where there are
EIGHTH = 8  # more images than an eighth of their pixels: fewer have few directions, and a matrix of pixels² is idle
LOOKED_AT = 2048  # of larger images, so many, taken evenly, tell the directions
ENTRIES = 2**25  # of the directions of larger images


@dataclass(frozen=True, eq=False)
class Components:
    """(1/N) Σ (xₙ − mean)(xₙ − mean)ᵀ + floor² I = Σ_i values_i w_i w_iᵀ + rest (I − Σ_i w_i w_iᵀ)

    mean (pixels,); values (k,), growing; directions w (pixels, k), orthonormal; rest: variance of every direction
    beside them, None where there is none (k = pixels). All float64.
    """

    mean: Tensor
    values: Tensor
    directions: Tensor
    rest: float | None


def components(images: Tensor, floor: float, rank: int | None = None) -> Components:
    """The principal components of images (N, *input_shape).

    Up to DENSE pixels, and without a rank, all of them. Of larger images, and of few, the `rank` leading ones, or as
    many as N − 1 and ENTRIES allow; they come from the Gram matrix of at most LOOKED_AT images, taken evenly. What is
    left of the variance is spread over all other directions (Tipping & Bishop 1999, eq. 8); no direction lies in it
    where N − 1 components are kept, and the result is then the exact covariance.

    Raises:
        BadInput: the images do not fit into the memory as float64.
    """
    pixels = images[0].numel()
    if pixels <= DENSE and (pixels <= SMALL or EIGHTH * len(images) > pixels):
        return _leading(*_dense(images.flatten(1).double(), floor), rank)
    if len(images) > LOOKED_AT:
        images = images[torch.linspace(0, len(images) - 1, LOOKED_AT).long()]
    memory.require(4 * 8 * images.numel(), f"a Gaussian of {len(images)} images of {pixels} pixels",
                   "take fewer or smaller images, or the prior uniform or tv")  # fmt: skip
    flat = images.flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh(centred @ centred.mT / len(flat))
    most = max(1, ENTRIES // pixels) if rank is None else rank
    kept = (values > 1e-10 * values[-1]) & (torch.arange(len(values)) >= len(values) - most).to(values.device)
    kept[-1] = True  # images that are all the same have one direction, of no variance
    own, left = values[kept].clamp(min=0), float(values[~kept].clamp(min=0).sum())
    directions = torch.linalg.qr(centred.mT @ vectors[:, kept])[0]
    return Components(mean, own + floor**2, directions, left / (pixels - len(own)) + floor**2)


def _dense(flat: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = flat.mean(0)
    centred = flat - mean
    covariance = centred.mT @ centred / len(flat) + floor**2 * torch.eye(flat.shape[1]).to(flat)
    return mean, *torch.linalg.eigh(covariance)


def _leading(mean: Tensor, values: Tensor, directions: Tensor, rank: int | None) -> Components:
    if rank is None or rank >= len(values):
        return Components(mean, values, directions, None)
    return Components(mean, values[-rank:], directions[:, -rank:], float(values[:-rank].mean()))


class Root(Protocol):
    """A square root of a covariance: z, standard normal coordinates in order of growing variance, -> x − mean."""

    @property
    def widths(self) -> Tensor:
        """Standard deviations along the coordinates, (rank,)."""
        ...

    @property
    def matrix(self) -> Tensor:
        """The same as a matrix, (pixels, rank)."""
        ...

    def __call__(self, z: Tensor) -> Tensor: ...
    def inverse(self, x: Tensor) -> Tensor: ...
    def to(self, device: torch.device | None, dtype: torch.dtype) -> Self: ...
    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it."""
        ...


def root_of(components: Components) -> Root:
    """The square root of a covariance, as a matrix where there is no rest."""
    if components.rest is None:
        return Dense(components.directions * components.values.sqrt())
    return Reflections.of(components)


def restored(tensors: Mapping[str, Tensor], pixels: int) -> Root:
    """The root that `tensors()` came from; raises BadInput where they are none of images of so many pixels."""
    made: Root
    if "reflectors" in tensors:
        reflectors, widths = tensors["reflectors"], tensors["widths"]
        fitting = widths.shape == (pixels,) and reflectors.dim() == 2 and 0 < reflectors.shape[1] < pixels
        fitting, lengths = fitting and len(reflectors) == pixels, reflectors.square().sum(0)
        made = Reflections(reflectors, widths)
    else:
        factor = tensors["factor"]
        fitting, lengths = factor.shape == (pixels, pixels), factor.square().sum(0)
        made = Dense(factor)
    if not fitting:
        raise BadInput("the tensors of its Gaussian have other shapes")
    if not bool((lengths > 0).all() and (made.widths > 0).all()):
        raise BadInput("the covariance of its Gaussian is singular")
    return made


@dataclass(frozen=True, eq=False)
class Dense:
    """The eigenvectors of a covariance times the roots of their eigenvalues: matrix (pixels, rank)."""

    matrix: Tensor

    @cached_property
    def widths(self) -> Tensor:
        return self.matrix.norm(dim=0)

    def to(self, device: torch.device | None, dtype: torch.dtype) -> Dense:
        return Dense(self.matrix.to(device, dtype))

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.matrix.mT

    def inverse(self, x: Tensor) -> Tensor:
        return x @ self.matrix / self.matrix.square().sum(0)

    def tensors(self) -> dict[str, Tensor]:
        return {"factor": self.matrix}


@dataclass(frozen=True, eq=False)
class Reflections:
    """A square root of `Components` that have a rest: root z = Q (widths ∘ z)   with Q orthogonal, (pixels, pixels).

        Q = H_1 … H_k,   H_i = I − 2 v_i v_iᵀ / ‖v_i‖²   =   I − V T Vᵀ,   T⁻¹ = diag(‖v_i‖²) / 2 + triu(Vᵀ V, 1)

    (Householder reflections in compact form, Schreiber & Van Loan 1989; T of Puglisi 1992), so that z are coordinates
    in order of growing variance, as with a dense matrix of eigenvectors: the leading components are the last.

    reflectors V (pixels, k); widths (pixels,), positive: standard deviations along the coordinates.
    """

    reflectors: Tensor
    widths: Tensor

    @staticmethod
    def of(components: Components) -> Reflections:
        assert components.rest is not None
        packed, _ = torch.geqrf(components.directions)  # whose first columns are the directions, but for signs
        k = packed.shape[1]
        reflectors = packed.tril(-1) + torch.eye(*packed.shape).to(packed)
        rest = components.values.new_full((packed.shape[0] - k,), components.rest)
        return Reflections(reflectors, torch.cat([rest, components.values]).sqrt())

    @cached_property
    def _triangle(self) -> Tensor:
        gram = self.reflectors.double().mT @ self.reflectors.double()
        inverse = gram.triu(1) + gram.diagonal().diag() / 2
        one = torch.eye(len(gram)).to(gram)
        return torch.linalg.solve_triangular(inverse, one, upper=True).to(self.reflectors.dtype)

    @property
    def matrix(self) -> Tensor:
        return self(torch.eye(len(self.widths)).to(self.widths)).mT

    def to(self, device: torch.device | None, dtype: torch.dtype) -> Reflections:
        return Reflections(self.reflectors.to(device, dtype), self.widths.to(device, dtype))

    def __call__(self, z: Tensor) -> Tensor:
        """Q (widths ∘ z) for z (…, pixels)."""
        k = self.reflectors.shape[1]
        scaled = self.widths * z
        x = torch.cat([scaled[..., len(self.widths) - k :], scaled[..., : len(self.widths) - k]], -1)
        return x - x @ self.reflectors @ self._triangle.mT @ self.reflectors.mT

    def inverse(self, x: Tensor) -> Tensor:
        """(Qᵀ x) / widths for x (…, pixels)."""
        k = self.reflectors.shape[1]
        z = x - x @ self.reflectors @ self._triangle @ self.reflectors.mT
        return torch.cat([z[..., k:], z[..., :k]], -1) / self.widths

    def tensors(self) -> dict[str, Tensor]:
        return {"reflectors": self.reflectors, "widths": self.widths}
