"""A posterior that was learnt beforehand: q(z | g) for any g of one program, by one pass through a network.

With s the sketch of g, U the coordinates of z that g tells of and U' the others (`pplleak.density.predictive`),

    Uᵀz = c + L w,   c = A s + a,   w = f(v; c),     U'ᵀz = v',     (v, v') ~ Normal(0, I)

A, a: the regression of Uᵀz on s; L Lᵀ: the covariance of its residuals; f: affine couplings whose shifts and widths are
networks of c (RealNVP, Dinh et al. 2017, by zuko). f begins as the identity, where q is the posterior of a
linear-Gaussian program, exactly; and bends from there.

An estimator is a safetensors file, which runs no code; what it was trained for stands in it as a word (`mark`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pplleak import reading, runs
from pplleak.density.predictive import Informed, Sketch
from pplleak.errors import BadInput, printable
from pplleak.tensors import read

if TYPE_CHECKING:
    import zuko

FORMAT = "pplleak-estimator-1"
PREFIX = "flow."
RIDGE = 1e-6  # of the regression, in units of the draws
WIDEST = 4096  # units of a flow's networks


@dataclass(frozen=True)
class _Metadata:
    """The metadata of a file: what each has to be."""

    mark: str
    count: int
    missed: float
    hidden: int


@dataclass(frozen=True, eq=False)
class Estimator:
    """q(z | g); slope (features + 1, d): A and a, factor (d, d): L; mark: what it was trained for."""

    sketch: Sketch
    informed: Informed
    slope: Tensor
    factor: Tensor
    flow: zuko.flows.Flow
    mark: str
    hidden: int

    def centre(self, s: Tensor) -> Tensor:
        """c (…, d)."""
        return s @ self.slope[:-1] + self.slope[-1]

    def encode(self, z: Tensor, s: Tensor) -> Tensor:
        """w (N, d) of z (N, dim)."""
        along = z @ self.informed.directions[:, : self.informed.count] - self.centre(s)
        return torch.linalg.solve_triangular(self.factor, along.mT, upper=False).mT

    @torch.no_grad()
    def decode(self, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """z (N, dim) of v and v' in one, (N, dim), for one g (D,); and log |∂z/∂v| (N,), float64."""
        count, c = self.informed.count, self.centre(self.sketch(g))
        w, log_det = self.flow(c).transform.inv.call_and_ladj(v[:, :count])
        r = torch.cat([c + w @ self.factor.mT, v[:, count:]], 1)
        return r @ self.informed.directions.mT, log_det.double() + self.factor.double().diagonal().log().sum()


def untrained(sketch: Sketch, informed: Informed, z: Tensor, s: Tensor, hidden: int, mark: str) -> Estimator:
    """The linear-Gaussian start, from draws z (N, dim) and their sketches s (N, features)."""
    along = (z @ informed.directions[:, : informed.count]).double()
    x = torch.cat([s, torch.ones_like(s[:, :1])], 1).double()
    gram = x.mT @ x + RIDGE * len(x) * torch.eye(x.shape[1]).to(x)
    slope = torch.linalg.solve(gram, x.mT @ along)
    residual = along - x @ slope
    covariance = residual.mT @ residual / len(x)
    least = 1e-9 * float(covariance.diagonal().mean()) + torch.finfo(z.dtype).tiny
    factor = torch.linalg.cholesky(covariance + least * torch.eye(len(covariance)).to(x))
    flow = couplings(informed.count, hidden).to(z.device, z.dtype)
    return Estimator(sketch, informed, slope.to(z.dtype), factor.to(z.dtype), flow, mark, hidden)


def couplings(dim: int, hidden: int) -> zuko.flows.Flow:
    """Four affine couplings that know c (dim,) and begin as the identity; of one coordinate, a shift and a width."""
    import zuko  # where it is used: most attacks need no flow

    kind, transforms = (zuko.flows.NICE, 4) if dim > 1 else (zuko.flows.MAF, 1)
    made = kind(dim, dim, transforms=transforms, hidden_features=(hidden, hidden), activation=nn.GELU)
    for transform in made.transform.transforms:
        if hasattr(transform, "hyper"):
            nn.init.zeros_(transform.hyper[-1].weight)
            nn.init.zeros_(transform.hyper[-1].bias)
    return made


def save(estimator: Estimator, path: Path) -> None:
    """Write an estimator, whole or not at all."""
    sketch, informed = estimator.sketch, estimator.informed
    tensors = {
        "centre": sketch.centre, "basis": sketch.basis, "scale": sketch.scale, "directions": informed.directions,
        "slope": estimator.slope, "factor": estimator.factor,
        **{PREFIX + n: t for n, t in estimator.flow.named_parameters()},
    }  # fmt: skip
    said = {"format": FORMAT, "mark": estimator.mark, "count": informed.count, "missed": informed.missed,
            "hidden": estimator.hidden}  # fmt: skip
    runs.tensors(path, tensors, {n: json.dumps(v) for n, v in said.items()})


def load(path: Path, mark: str, g: Tensor, dim: int) -> Estimator:
    """Read an estimator without running anything in it, in the precision and on the device of g.

    Args:
        mark: what it has to be trained for (`pplleak.density.predictive.mark`). g: (D,), and dim: of z, which it fits.

    Raises:
        BadInput: no whole safetensors file, no estimator, one of another program, or tensors that do not fit.
    """
    tensors, raw = read(path)
    if raw.get("format") != json.dumps(FORMAT):
        raise BadInput(f"{printable(path)} holds no estimator: name another file")
    said = reading.metadata(raw, _Metadata, f"{printable(path)}: its metadata")
    if said.mark != mark:
        raise BadInput(f"{printable(path)} was trained for another model, client, noise, labels or settings: name "
                       "another file, or delete it")  # fmt: skip
    own = {n: t.to(g.device, g.dtype) for n, t in tensors.items() if t.is_floating_point()}
    network = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    try:
        centre, basis, scale, directions, slope, factor = (
            own[n] for n in ("centre", "basis", "scale", "directions", "slope", "factor")
        )
        features, d = len(scale), said.count
        shapes = [t.shape for t in (centre, basis, scale, directions, slope, factor)]
        fits = shapes == [g.shape, (len(g), features), (features,), (dim, dim), (features + 1, d), (d, d)]
        if not fits or not 0 < d <= dim or not 0 < said.hidden <= WIDEST or not 0 <= said.missed < 1e9:
            raise BadInput("its tensors do not fit each other")
        if not (scale > 0).all() or not (factor.diagonal() > 0).all():
            raise BadInput("its widths are not positive")
        turned = directions.mT @ directions - torch.eye(dim).to(g)
        if not turned.abs().max() < 1e-3 or not torch.equal(factor, factor.tril()):  # or weights would be wrong, unseen
            raise BadInput("its directions are not orthonormal, or its factor is no triangle")
        flow = couplings(d, said.hidden).to(g.device, g.dtype)
        if set(network) != {n for n, _ in flow.named_parameters()}:
            raise BadInput("its flow has other parameters")
        flow.load_state_dict({**flow.state_dict(), **network})  # masks are made, not read
    except (BadInput, LookupError, ValueError, RuntimeError, TypeError) as error:
        raise BadInput(f"{printable(path)} is no whole estimator: {printable(error)}; delete it") from error
    return Estimator(Sketch(centre, basis, scale), Informed(directions, d, said.missed), slope, factor, flow, mark,
                     said.hidden)  # fmt: skip
