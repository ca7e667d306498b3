"""A log-density recorded once as a flat list of tensor operations, and replayed without Pyro, autograd or Python.

A sampler asks for the same function thousands of times at the same shape. `record` writes down the operations of one
evaluation and of its gradient, drops what does not depend on z, and multiplies out what is affine or quadratic in z:

    log p(z) = body(A z + a, ½ zᵀH₁z + k₁ᵀz + c₁, …)

For an image x = mean + F z behind a Linear layer with weight W and observed gradient G, the network sees z only through
W F z, G F z and ‖mean + F z‖²: the image itself is never formed. `Tape.under` changes the coordinates of a tape by
another affine map, as whitening does, at no further cost a step.

What cannot be recorded (control flow that looks at values, random or in-place operations) or does not replay to the
same numbers is left as it is: `record` then warns, and returns the plain function, which has the same values and is
slower.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pplleak import memory
from pplleak.density import footprint
from pplleak.density.recording import frontier, graphs


@dataclass(frozen=True, eq=False)
class Linear:
    """z (chains, dim) -> A z + a, cut into one part a leaf of the body; no matrix means the identity.

    matrix: Aᵀ (dim, m) in z's own precision. offset: a (m,) in float64, added in each leaf's precision: around a mode,
    A z is small against a, and so is its rounding. likes: the leaves' shapes and types, tensors without storage.
    """

    matrix: Tensor | None
    offset: Tensor | None
    likes: tuple[Tensor, ...]

    def __call__(self, z: Tensor) -> tuple[Tensor, ...]:
        sizes = [like[0].numel() for like in self.likes]
        parts = (z if self.matrix is None else z @ self.matrix).split(sizes, 1)
        if self.offset is None:
            return tuple(p.reshape(like.shape) for p, like in zip(parts, self.likes, strict=True))
        offsets = self.offset.split(sizes)
        return tuple(
            (offset.to(like.dtype) + part).reshape(like.shape)
            for part, offset, like in zip(parts, offsets, self.likes, strict=True)
        )

    def pull(self, gradients: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """The gradients in the leaves as one in z, (chains, dim)."""
        flat = torch.cat([g.reshape(len(g), -1).to(dtype) for g in gradients], 1)
        return flat if self.matrix is None else flat @ self.matrix.mT

    def under(self, shift: Tensor, factor: Tensor | None) -> Linear:
        matrix = None if self.matrix is None else self.matrix.double()
        moved = shift.double() if matrix is None else shift.double() @ matrix
        if factor is not None:
            matrix = factor.double().mT if matrix is None else factor.double().mT @ matrix
        return replace(
            self,
            matrix=None if matrix is None else matrix.to(shift.dtype).contiguous(),
            offset=moved if self.offset is None else self.offset + moved,
        )


@dataclass(frozen=True, eq=False)
class Quadratics:
    """z (chains, dim) -> ½ zᵀH_j z + k_jᵀz + c_j for every j, in float64.

    hessians: H_j, (dim, dim) each, or (dim,) where it is diagonal. slopes (q, dim), constants (q,). likes: the values'
    shapes and types in the graph, tensors without storage. The products H_j z run in z's own precision unless H_j is
    diagonal, every sum that follows in float64.
    """

    hessians: tuple[Tensor, ...]
    slopes: Tensor
    constants: Tensor
    likes: tuple[Tensor, ...]

    @staticmethod
    def of(
        hessians: Sequence[Tensor], slopes: Tensor, constants: Tensor, likes: Sequence[Tensor], dtype: torch.dtype
    ) -> Quadratics:
        kept = tuple(_diagonal(h, 8 * torch.finfo(dtype).eps) for h in hessians)
        return Quadratics(kept, slopes, constants, tuple(likes))

    @cached_property
    def diagonals(self) -> Tensor:
        """(q, dim); zero where H_j is not diagonal."""
        return torch.stack([h if h.dim() == 1 else torch.zeros_like(h[0]) for h in self.hessians])

    @cached_property
    def dense(self) -> dict[int, Tensor]:
        return {j: h for j, h in enumerate(self.hessians) if h.dim() == 2}

    def __call__(self, z: Tensor) -> tuple[tuple[Tensor, ...], dict[int, Tensor]]:
        """The values, each in its leaf's shape and type, and H_j z (chains, dim) for the dense ones."""
        if not self.hessians:
            return (), {}
        wide = z.double()
        bent = {j: z @ h.to(z.dtype) for j, h in self.dense.items()}
        values = wide.square() @ (0.5 * self.diagonals).mT + wide @ self.slopes.mT + self.constants
        for j, product in bent.items():
            values[:, j] += 0.5 * torch.linalg.vecdot(wide, product.double())
        shaped = (v.reshape(like.shape).to(like.dtype) for v, like in zip(values.unbind(1), self.likes, strict=True))
        return tuple(shaped), bent

    def pull(self, gradients: Sequence[Tensor], z: Tensor, bent: dict[int, Tensor]) -> Tensor:
        """The gradients in the values as one in z, (chains, dim)."""
        g = torch.stack([g.reshape(-1) for g in gradients], 1).to(z.dtype)
        slope = torch.addcmul(g @ self.slopes.to(z.dtype), g @ self.diagonals.to(z.dtype), z)
        for j, product in bent.items():
            slope = torch.addcmul(slope, g[:, j, None], product)
        return slope

    def under(self, shift: Tensor, factor: Tensor | None) -> Quadratics:
        if not self.hessians:
            return self
        dtype, shift = shift.dtype, shift.double()
        bent = torch.stack([h * shift if h.dim() == 1 else h @ shift for h in self.hessians])
        constants = self.constants + (self.slopes + 0.5 * bent) @ shift
        slopes = self.slopes + bent
        if factor is None:
            return replace(self, slopes=slopes, constants=constants)
        f = factor.double()
        hessians = [f.mT @ (h[:, None] * f if h.dim() == 1 else h @ f) for h in self.hessians]
        return Quadratics.of(hessians, slopes @ f, constants, self.likes, dtype)


def _diagonal(hessian: Tensor, rounding: float) -> Tensor:
    """The diagonal of a matrix that is one but for rounding, or the matrix."""
    diagonal = hessian.diagonal()
    widths = diagonal.abs().sqrt()
    rest = (hessian - diagonal.diag()).abs()
    # what is left over is the rounding of the matrices that were multiplied out
    return diagonal if bool((rest <= max(rounding, 1e-13) * widths[:, None] * widths).all()) else hessian


@dataclass(frozen=True, eq=False)
class Tape:
    """Value (chains,) and gradient (chains, dim) of a log-density at z (chains, dim), for one number of chains.

    body: the leaves -> the value, then the gradient in every leaf.
    """

    body: Callable[..., tuple[Tensor, ...]]
    linear: Linear
    quadratics: Quadratics

    @torch.no_grad()
    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        squares, bent = self.quadratics(z)
        value, *slopes = self.body(*self.linear(z), *squares)
        cut = len(self.linear.likes)
        gradient = self.linear.pull(tuple(slopes[:cut]), z.dtype)
        if squares:
            gradient = gradient + self.quadratics.pull(slopes[cut:], z, bent)
        return value, gradient

    def under(self, shift: Tensor, factor: Tensor | None) -> Tape:
        """The same density as a function of w, where z = shift + factor w: shift (dim,), factor (dim, dim), or None for
        the identity."""
        return Tape(self.body, self.linear.under(shift, factor), self.quadratics.under(shift, factor))


@dataclass(frozen=True, eq=False)
class Plain:
    """What `record` returns where it cannot record: the function itself, differentiated at every call."""

    log_density: Callable[[Tensor], Tensor]

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            value = self.log_density(z)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    def under(self, shift: Tensor, factor: Tensor | None) -> Plain:
        return Plain(lambda w: self.log_density(shift + (w if factor is None else w @ factor.mT)))


@dataclass(frozen=True, eq=False)
class Chunked:
    """A batch of chains that does not fit into memory, `size` of them at a time."""

    part: Recorded
    size: int

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = zip(*(self.part(piece) for piece in z.split(self.size)), strict=True)
        return torch.cat(values), torch.cat(gradients)

    def under(self, shift: Tensor, factor: Tensor | None) -> Chunked:
        return Chunked(self.part.under(shift, factor), self.size)


Recorded = Tape | Plain | Chunked

# What comes of a function that looks at values or has an operation without a rule for tracing (torch: RuntimeError,
# which NotImplementedError is, too; TypeError where no kind of tensor knows it), or that draws random numbers or
# changes a tensor in place (`graphs.simplify`: ValueError).
UNRECORDABLE = (RuntimeError, TypeError, ValueError)


def record(log_density: Callable[[Tensor], Tensor], example: Tensor) -> Recorded:
    """A function that gives `log_density` and its gradient at any z of the shape of `example`.

    Args:
        log_density: z (chains, dim) -> (chains,), chains not seeing each other, no randomness.
        example: any such z, at which the operations are recorded; the replay is checked at other points.

    Warns:
        RuntimeWarning: the function cannot be recorded, or its replay gives other numbers: the plain one is returned.
    """
    size = fitting(log_density, example)
    if size < len(example):
        return Chunked(record(log_density, example[:size]), size)
    plain = Plain(log_density)
    try:
        tape = _record(log_density, example.detach())
    except UNRECORDABLE as error:
        return unrecorded(plain, error)
    return tape if _agree(tape, plain, example) else _slow(plain, "its recording gives other numbers")


def unrecorded[F](plain: F, error: Exception) -> F:
    """The plain function, with a warning that says which of `UNRECORDABLE` it was."""
    message = next(iter(str(error).strip().splitlines()), "")
    return _slow(plain, f"it cannot be recorded ({type(error).__name__}: {message})", stacklevel=4)


def _slow[F](plain: F, why: str, stacklevel: int = 3) -> F:
    """The plain function, with a warning of what it costs: once a cause, as Python's default filter has it."""
    text = f"the log-density is differentiated anew at every step, which is slower but the same: {why}"
    warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)
    return plain


def fitting(log_density: Callable[[Tensor], Tensor], example: Tensor) -> int:
    """How many chains fit into half of the free memory: all of them, or a divisor of their number."""
    chains = len(example)
    if chains < 2:
        return chains
    evaluate, room = Plain(log_density), 0.5 * _free_bytes(example.device)
    once, each = footprint.by_rows(lambda k: evaluate(example[:k]))
    return next((k for k in range(chains, 0, -1) if chains % k == 0 and once + k * each <= room), 1)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return memory.available()


def _record(log_density: Callable[[Tensor], Tensor], example: Tensor) -> Tape:
    def forward(z: Tensor) -> Tensor:
        with torch.enable_grad():
            return log_density(z.requires_grad_())

    module = graphs.recorded(forward, (example,))
    leaves, quadratic = frontier.frontier(module, example)
    rest = frontier.cut(module, [*leaves, *quadratic])
    affine = frontier.Evaluated(module, example)
    if leaves == [frontier.root(module)]:
        linear = Linear(None, None, (example.to("meta"),))
    else:
        matrix, offset = affine.linear(leaves)
        linear = Linear(matrix.to(example.dtype), offset, tuple(affine.like[n] for n in leaves))
    forms = [affine.quadratic(n) for n in quadratic]
    quadratics = Quadratics.of(
        [h for h, _, _ in forms],
        torch.stack([k for _, k, _ in forms]) if forms else torch.empty(0, example.shape[1]),
        torch.stack([c for _, _, c in forms]) if forms else torch.empty(0),
        [affine.like[n] for n in quadratic],
        example.dtype,
    )

    def value_and_grad(*given: Tensor) -> tuple[Tensor, ...]:
        given = tuple(t.detach().requires_grad_() for t in given)
        with torch.enable_grad():
            value = rest(*given)
            slopes = torch.autograd.grad(value.sum(), given)
        return (value.detach(), *slopes)

    at = (*linear(example), *quadratics(example)[0])
    return Tape(graphs.recorded(value_and_grad, at), linear, quadratics)


def _agree(tape: Tape, plain: Plain, example: Tensor) -> bool:
    """Do they give the same numbers where nothing was recorded? Within what the precision of z resolves."""
    generator = torch.Generator(example.device).manual_seed(0)
    roundings = 100 * torch.finfo(example.dtype).eps
    for scale in (0.3, 1.0):
        noise = torch.randn(example.shape, generator=generator, dtype=example.dtype, device=example.device)
        z = example.detach() + scale * noise
        (value, gradient), (value_, gradient_) = tape(z), plain(z)
        if not torch.allclose(value, value_, rtol=roundings, atol=roundings):
            return False
        off, size = (gradient - gradient_).norm(dim=1), gradient_.norm(dim=1)
        if not bool((off <= roundings * (size + 1)).all()):
            return False
    return True
