"""SPEAR: batches behind a ReLU layer, separated exactly by the sparsity of its gradients (a point).

For a first layer W x + b that is fully connected, with δ_b the loss's gradient at its output for example b,

    R = [∂ℓ/∂W | ∂ℓ/∂b] = Σ_b δ_b [x_b, 1]ᵀ = U S Vᵀ,   of rank B

The columns δ_b lie in the span of U, δ_b ∝ U q_b, and ReLU makes each of them 0 where its unit is not active: in about
half of the entries, while a combination of two is 0 in a quarter. So they are the sparsest vectors of that span,

    q_b:  local minima of Σ_i |(U q)_i|^½  on  ‖q‖ = 1

Each is found by iteratively re-weighted least squares (the eigenvector of the least eigenvalue of Uᵀ diag(w) U), from
hundreds of starts at once, and made exact as the null vector of the rows that are 0. With Q = (q_1 … q_B), the rows
of Q⁻¹ S Vᵀ are multiples of [x_b, 1]. An image x_b says by W x_b + b < 0 on which units its own column is 0: such rows
have one null vector, which repairs columns that were mixtures; the search ends when every image agrees with its column,
and what does not is reported. No prior and nothing of the network behind the layer is needed; labels follow from δ_b,
unless they were shared.

A start is such a null vector, too: of the units that are least active at a mixture of the batch's images. Row i of R is
one, Σ_b δ_bi [x_b, 1], and near the image that unit i likes best. In later rounds, the columns that were found are
projected off the rows first (deflation), which leaves mixtures of the others: near one of them when few are left.

Source: Dimitrov, Baader, Müller and Vechev, SPEAR: Exact Gradient Inversion of Batches in Federated Learning, NeurIPS
2024, section 4 (low rank, sparsity, scales); its search samples submatrices, this one descends. The starts and their
deflation are this file's own.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.client.loss import require_cross_entropy
from pplleak.density import Model, require_finite
from pplleak.density.first_layer import first_layer, fully_connected, whose
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, in_range, read_off
from pplleak.progress import ProgressBar, silent

SPARSE = 0.1  # share of zeros of a column: about half for one example, a quarter for two, none without ReLU
ZERO = 1e-3  # of a column's largest entry
STEPS = 15  # of a descent
LEAST = 0.1  # share of units, the least active ones at a mixture, whose null vector is a start
MIXED = 2  # rows that are added to one, on average, from the second round on
DEFLATED = 0.8  # share of the columns found that a round takes for known: some are mixtures
TRIM = 0.15  # share of rows whose null vector makes a column exact
REPAIRS = 8
NULL, SECOND = 0.1, 1e-3  # the least singular value of the next one, and that of the first: rows with one null vector
APART = 0.05  # sine of the angle between a column and the span of those before it
ALIKE = 0.999  # cosine of a column and the one that its image asks for
SURE = 0.7  # share of the inactive units, the most inactive ones, that a repair trusts


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    starts: int = 256,
    rounds: int = 32,
) -> Posterior:
    """The images of a batch as a posterior of one draw; the model is not looked at.

    Args:
        starts: mixtures of images that a round starts from, at most one a unit.
        rounds: at most; it ends as soon as all columns are found.
    """
    require_positive(starts=starts, rounds=rounds)
    require_cross_entropy(client.loss, "spear reads labels off")
    require_finite(observed)
    pyro.set_rng_seed(seed)
    gradient, size = first_layer(client, observed.g), observed.batch_size
    if min(gradient.shape) < size:
        raise BadInput(f"the first layer's gradient is {gradient.shape[0]} x {gradient.shape[1]}, and has no rank of "
                       f"{size}, the size of the batch: take inference map")  # fmt: skip
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    u, right = u[:, :size], s[:size, None] * vh[:size]
    names = fully_connected(client)
    weight, bias = (client.parameters[n].double() for n in names)
    found = torch.eye(size).to(u)
    pool, known, own = found[:0], found[:0], torch.full((size,), size == 1).to(u.device)  # one needs no search
    for _ in progress("columns", rounds if size > 1 else 0):
        known = known[torch.rand(len(known), device=u.device) < DEFLATED]
        begin = _mixed(u, right, weight, bias, known, starts)
        pool = torch.cat([pool, _sparsest(u, begin)])
        sparse = _independent(pool, u)
        found = torch.cat([sparse, torch.linalg.svd(sparse)[2][len(sparse) :]])
        for _ in range(REPAIRS):
            before, (found, own) = own, _repaired(found, u, _images(_rows(found, right)) @ weight.mT + bias)
            if (before & own).all():
                break
        pool, known = torch.cat([pool, found]), found[: len(sparse)]
        if own.all():
            break
    if not own.any():
        raise BadInput("no column of the first layer's gradient is sparse: without ReLU behind that layer, or with so "
                       "much noise, the examples cannot be told apart; take inference map")  # fmt: skip
    missing = int((~own).sum())
    reasons = [f"{missing} of {size} examples could not be told apart (more rounds?)"] if missing else []
    rows = _rows(found, right)
    x = _images(rows)
    deltas = (found @ u.mT) * rows[:, -1:]
    order, labels = whose(client, in_range(client, x), deltas, names[1], observed.labels, size)
    return read_off(client, observed, x[order], labels, "the sparse columns of the first layer's gradient", reasons)


def _mixed(u: Tensor, right: Tensor, weight: Tensor, bias: Tensor, known: Tensor, starts: int) -> Tensor:
    """Null vectors q (at most `starts`, B) of the units that are least active at mixtures of the batch's images, those
    of the columns U q of `known` (k, B) left out; u: (units, B), right: S Vᵀ."""
    basis = torch.linalg.qr(u @ known.mT)[0]
    rows = u - basis @ (basis.mT @ u)
    if len(known):  # not the same mixtures as in the first round
        dense = torch.rand(len(u), len(u), device=u.device) < MIXED / len(u)
        rows = rows + torch.randn(len(u), len(u)).to(u) * dense @ rows
    mixtures = rows[torch.randperm(len(u), device=u.device)[:starts]] @ right
    mixtures = mixtures[mixtures[:, -1].abs() > 1e-6 * mixtures.norm(dim=1)]  # of no image: 0 = 0 · [x, 1]
    inactive = (_images(mixtures) @ weight.mT + bias).topk(max(u.shape[1], int(LEAST * len(u))), 1, largest=False)[1]
    return torch.linalg.svd(u[inactive], full_matrices=False)[2][:, -1]


def _sparsest(u: Tensor, q: Tensor) -> Tensor:
    """Local minima (starts, B) of Σ |U q|^½ on the sphere near q (starts, B), each made exact where it is 0."""
    for width in torch.logspace(-1, -6, STEPS).tolist():
        values = (q @ u.mT).abs()  # (starts, units)
        eps = width * values.amax(1, keepdim=True)
        weights = (values.square() + eps.square()) ** -0.75
        weights = weights / weights.amax(1, keepdim=True)
        q = torch.linalg.eigh(torch.einsum("si,ia,ib->sab", weights, u, u))[1][..., 0]
    for _ in range(2):
        values = (q @ u.mT).abs()
        zeros = values.topk(max(u.shape[1], int(TRIM * len(u))), 1, largest=False)[1]
        q = torch.linalg.svd(u[zeros], full_matrices=False)[2][:, -1]
    return q


def _independent(q: Tensor, u: Tensor) -> Tensor:
    """The sparsest candidates that do not lie in each other's span, (at most B, B), sparsest first."""
    values = (q @ u.mT).abs()
    zeros = (values < ZERO * values.amax(1, keepdim=True)).double().mean(1)
    order = zeros.argsort(descending=True)
    chosen: list[Tensor] = []
    basis = q.new_empty(0, q.shape[1])
    for k in order[zeros[order] >= SPARSE].tolist():
        rest = q[k] - basis.mT @ (basis @ q[k])
        if rest.norm() < APART:
            continue
        chosen.append(q[k])
        basis = torch.cat([basis, (rest / rest.norm())[None]])
        if len(chosen) == q.shape[1]:
            break
    return torch.stack(chosen) if chosen else q[:0]


def _rows(q: Tensor, right: Tensor) -> Tensor:
    """The multiples (B, pixels + 1) of [x_b, 1] that stand beside the columns U q_b; right: S Vᵀ."""
    return torch.linalg.solve(q.mT, right)


def _images(rows: Tensor) -> Tensor:
    return rows[:, :-1] / rows[:, -1:]


def _repaired(q: Tensor, u: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The columns, where an image that they give says by its own inactive units which column is really its own: a
    mixture of two in q leaves one of them right and the other one wrong. And which were their images' own before.

    Args:
        inputs: W x_b + b of the images that q gives, (B, units).
    """
    size, agree = u.shape[1], torch.zeros(len(q), dtype=torch.bool, device=q.device)
    for k, before in enumerate(inputs):
        inactive = before.argsort()[: int((before < 0).sum())]  # the most inactive ones first
        least, own = NULL, None
        for rows in (inactive, inactive[: int(SURE * len(inactive))]):
            if len(rows) > size:
                _, values, directions = torch.linalg.svd(u[rows], full_matrices=False)
                if values[-2] > SECOND * values[0] and values[-1] < least * values[-2]:
                    least, own = float(values[-1] / values[-2]), directions[-1]
        if own is not None:
            agree[k] = (own @ q[k]).abs() > ALIKE * q[k].norm()
            repaired = torch.cat([q[:k], own[None], q[k + 1 :]])
            if torch.linalg.svdvals(repaired)[-1] > 1e-5:  # not two images that became one
                q = repaired
    return q, agree


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
