"""Labels read off the gradient of the last layer, in closed form, before any search for the images.

For logits W a + b, p = softmax(W a + b) and the cross entropy, averaged over the B examples of a batch,

    ∂ℓ/∂b = (1/B) Σ_b (p_b − e_{y_b})                 (num_classes,)
    ∂ℓ/∂W = (1/B) Σ_b (p_b − e_{y_b}) a_bᵀ            (num_classes, features)

so that an example pulls the entry of its own class down and all others up. An update does not say which example is
which: labels come back in ascending order. Every rule checks what it assumes and raises `BadInput` where that fails;
what it cannot know lowers its confidence. Labels left unknown assume none of this: they are summed out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.client.last_layer import ELSE, inputs, last_layer
from pplleak.client.loss import get, require_cross_entropy
from pplleak.density import soft_labels
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation

ADDITIVE = ("gaussian", "laplace", "rounded")  # channels that leave an update its scale and its signs, up to noise
PUBLIC = 512  # images that the moments of `counts` are taken over
ROUNDING = 1e-5  # of a float32 gradient's entries, relative to the largest: the least noise that is assumed


@dataclass(frozen=True, eq=False)
class Recovered:
    """labels (batch,) ascending; the rule; the probability that all are right, None where the rule has none."""

    labels: Tensor
    rule: str
    confidence: float | None

    @property
    def sure(self) -> bool:
        return self.confidence is not None and self.confidence >= 0.95


# -- one example ---------------------------------------------------------------------------------------------------


def idlg(bias: Tensor, sigma: float = 0.0) -> Recovered:
    """The label of one example from ∂ℓ/∂b = p − e_y: the only negative entry (Zhao et al. 2020, iDLG). Exact.

    Under noise, label c is as likely as the nearest gradient that it could have: with d_c the distance of
    ∂ℓ/∂b + e_c from the probability simplex, weights exp(−d_c² / 2σ²), normalised over the classes.

    Args:
        bias: (num_classes,). sigma: standard deviation of the noise on its entries.

    Raises:
        BadInput: no label explains the entries: another loss than the cross entropy, or several examples.
    """
    delta, classes = bias.double(), len(bias)
    sigma = max(sigma, ROUNDING)
    points = delta + torch.eye(classes, dtype=torch.float64, device=bias.device)
    square = (points - _onto_simplex(points)).square().sum(1)
    if square.min() > sigma**2 * _limit(classes):
        raise BadInput(
            "the last layer's gradient is not that of the cross entropy of one example: is it another loss, "
            f"or a larger batch? If neither, {ELSE}"
        )
    weights = (-0.5 * square / sigma**2).softmax(0)
    label = int(weights.argmax())
    return Recovered(torch.tensor([label]), "iDLG, from the last bias", float(weights[label]))


def idlg_from_weight(weight: Tensor, sigma: float = 0.0, *, non_negative: bool = False) -> Recovered:
    """The label of one example from ∂ℓ/∂W = (p − e_y) aᵀ, for a last layer without bias (Zhao et al. 2020, iDLG).

    The row of the label points against all others. With three classes or more that needs no assumption on a: Σ_c
    (p − e_y)_c = 0 makes its row the longest, too. Of two classes both rows are as long, and the sign of a decides.

    Args:
        weight: (num_classes, features). sigma: standard deviation of the noise on its entries.
        non_negative: a ≥ 0 (ReLU, sigmoid), so that the label's row is the negative one.

    Raises:
        BadInput: the matrix has not rank 1 (several examples); no label explains it; two classes and signs unknown.
    """
    classes, features = weight.shape
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    if len(s) > 1 and s[1] > 2 * sigma * (math.sqrt(classes) + math.sqrt(features)) + 10 * ROUNDING * s[0]:
        raise BadInput(
            "the last layer's gradient has not rank 1: more than one example is behind it: say the batch size"
        )
    if not s[0] > 0:
        raise BadInput(f"the last layer's gradient is zero and tells no label: {ELSE}")
    direction = u[:, 0] * (v[0].sum().sign() if non_negative else 1)
    if classes == 2:
        if not non_negative:
            raise BadInput(
                "two classes, no bias, and inputs of either sign before the last layer (GELU, tanh): its gradient "
                f"has one sign for both labels; {ELSE}"
            )
        longest = int(direction.argmin())
    else:
        longest = int(direction.abs().argmax())
    labels = idlg(-direction / direction[longest], sigma / float(s[0] * direction[longest].abs()))
    return replace(labels, rule="iDLG, from the last weight")


# -- a batch -------------------------------------------------------------------------------------------------------


def llg(rows: Tensor, batch_size: int) -> Recovered:
    """Labels of a batch from the row sums r of ∂ℓ/∂W alone (Wainakh et al. 2022, LLG).

    For a ≥ 0 a negative r_c holds an example of class c. Each example is taken to lower its class's row by the same

        m = (1 + 1/K) (1/B) Σ over r_c < 0 of r_c

    so one example is given to every negative row, then the others, one by one, to the row that is then lowest. A
    guess, with no measure of its confidence: what the rows of other classes add is left out.

    Args:
        rows: (num_classes,), Σ_j ∂ℓ/∂W_cj of a network whose last layer has inputs a ≥ 0. batch_size: examples.

    Raises:
        BadInput: no row is negative, or more of them than examples: a ≥ 0 or the cross entropy does not hold.
    """
    left = rows.double().clone()
    present = torch.nonzero(left < 0).flatten()
    if not 0 < len(present) <= batch_size:
        raise BadInput(
            f"{len(present)} rows of the last layer's gradient are negative, for {batch_size} examples: this is not "
            f"the cross entropy behind non-negative activations, or there is noise; {ELSE}"
        )
    impact = left[present].sum() / batch_size * (1 + 1 / len(rows))
    labels = present.tolist()
    left[present] -= impact
    while len(labels) < batch_size:
        label = int(left.argmin())
        labels.append(label)
        left[label] -= impact
    return Recovered(torch.tensor(sorted(labels)), "LLG, from the last weight", None)


def counts(
    r: Tensor, scale: Tensor, probabilities: Tensor, batch_size: int, sigma: float = 0.0
) -> tuple[Tensor, float]:
    """How many examples of each class a batch holds, from r = (1/B) Σ_b s_b (p_b − e_{y_b}) and public examples.

    s = 1 for the bias; s = Σ_j a_j for the row sums of the weight. For counts n, by the central limit theorem,

        r ~ Normal(E[s p] − E[s] n / B, Cov(s (p − e_y)) / B + σ² I),       n ~ Multinomial(B, uniform)

    with the moments over public examples (the covariance averaged over y). The best n is climbed to by moving one
    example at a time, from E[s p] − r rounded. Its confidence is its probability among its own neighbours: an upper
    bound, and as good as the normal approximation, which p that depend on the label (a trained network) blur.

    Args:
        r: (num_classes,). scale, probabilities: s (N,) and p (N, num_classes) of public examples.
        batch_size: examples behind r. sigma: standard deviation of the noise on r.

    Returns:
        n (num_classes,) and its confidence.

    Raises:
        BadInput: no counts explain r: another loss, another batch size, or public examples of another kind.
    """
    r, s, p = r.double(), scale.double(), probabilities.double()
    classes, eye = len(r), torch.eye(len(r), dtype=torch.float64, device=r.device)
    scaled = s[:, None] * p
    pulled = s[:, None, None] * (p[:, None] - eye)  # (N, y, num_classes)
    centred = pulled - pulled.mean(0)
    covariance = torch.einsum("nyc,nyd->cd", centred, centred) / (len(s) * classes)
    floor = max(sigma, ROUNDING * float(s.abs().mean())) ** 2
    precision = torch.linalg.inv(covariance / batch_size + floor * eye)
    mean, size = scaled.mean(0), s.mean()

    def misfit(n: Tensor) -> Tensor:
        error = r - mean + size * n / batch_size
        return ((error @ precision) * error).sum(-1)

    def log_prob(n: Tensor) -> Tensor:
        return -0.5 * misfit(n) - torch.lgamma(n + 1).sum(-1)

    n = _apportioned((mean - r) / size, batch_size)
    moves = (eye[:, None] - eye).flatten(0, 1)[~torch.eye(classes, dtype=torch.bool).flatten()]
    while True:
        near = n + moves
        near = near[(near >= 0).all(1)]
        values = log_prob(near)
        here = log_prob(n)
        if values.max() <= here:
            break
        n = near[values.argmax()]
    if misfit(n) > _limit(classes):
        raise BadInput(
            "no labels explain the last layer's gradient: is it another loss, another batch size, or are the public "
            f"images of another kind than the private ones? If not, {ELSE}"
        )
    return n.long(), float(torch.sigmoid(here - values.logsumexp(0)))


def _apportioned(share: Tensor, total: int) -> Tensor:
    """Non-negative whole numbers (float64) with the given sum, by largest remainders."""
    share = share.clamp(min=0)
    exact = (
        share / share.sum().clamp(min=1e-300) * total if share.sum() > 0 else torch.full_like(share, total / len(share))
    )
    n = exact.floor()
    n[(exact - n).argsort(descending=True)[: total - int(n.sum())]] += 1
    return n


def _onto_simplex(points: Tensor) -> Tensor:
    """The nearest probability vector to each row (Duchi et al. 2008, figure 1)."""
    ordered = points.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, points.shape[-1] + 1, device=points.device)
    last = (ordered > excess).sum(-1, keepdim=True) - 1
    return (points - excess.gather(-1, last)).clamp(min=0)


def _limit(classes: int) -> float:
    """What that many squared unit noises, Gaussian or Laplace (kurtosis 6), do not sum to by chance."""
    return classes + 8 * math.sqrt(5 * classes)


def recover(
    client: Client,
    observed: Observation,
    *,
    sigma: float = 0.0,
    channel: str = "gaussian",
    public: Tensor | None = None,
) -> Recovered:
    """The labels behind an observation, by the best rule that applies.

    One example: `idlg` from the bias, or `idlg_from_weight`. A batch: `counts` from the bias, or from the weight's row
    sums, where there are public images; else `llg`, where the last layer's inputs are not negative.

    Args:
        sigma: the channel's noise. public: (N, *input_shape), images of the same kind.

    Raises:
        BadInput: local training; a channel that does more than add noise; no rule applies, or what it assumes fails.
    """
    if client.local is not None:
        raise BadInput(f"labels are recovered from a gradient, and this client shares local training: {ELSE}")
    require_cross_entropy(client.loss, "labels are read off the gradient of")
    if channel not in ADDITIVE:
        raise BadInput(f"labels are recovered behind {' or '.join(ADDITIVE)} noise, not behind '{channel}': {ELSE}")
    layer = last_layer(client)
    parts = client.split(observed.g)
    size, features = observed.batch_size, layer.module.in_features
    images = public
    if images is None or images.shape[1:] != client.input_shape:
        images = torch.rand(PUBLIC, *client.input_shape, generator=torch.Generator().manual_seed(0))
        public = None
    a, logits = inputs(
        client, layer.module, images[torch.linspace(0, len(images) - 1, min(len(images), PUBLIC)).long()]
    )
    non_negative = bool((a >= 0).all())
    if size == 1:
        if layer.bias:
            return idlg(parts[layer.bias], sigma)
        return idlg_from_weight(parts[layer.weight], sigma, non_negative=non_negative)
    rows = parts[layer.weight].double().sum(1)
    if public is not None:
        r, scale, noise = (parts[layer.bias], torch.ones(len(a)), sigma) if layer.bias else (
            rows, a.sum(1), sigma * math.sqrt(features))  # fmt: skip
        n, confidence = counts(r, scale.to(a.device), logits.softmax(-1), size, noise)
        labels = torch.repeat_interleave(torch.arange(len(n), device=n.device), n)
        if not layer.bias:  # row sums have heavier tails than the normal: measured, their confidence is too high
            return Recovered(labels, "counts, from the last weight", None)
        return Recovered(labels, "counts, from the last bias", confidence)
    if not non_negative:
        raise BadInput(
            "the inputs of the last layer take either sign (GELU, tanh), and LLG needs them non-negative: give public "
            f"images of the same kind, or {ELSE}"
        )
    return llg(rows, size)


def recovered(observed: Observation) -> Observation:
    """The observation as an adversary sees it who recovers the labels, whatever was shared of them.

    The result stands in `provenance["recovered_labels"]`: labels, rule, confidence, and, where the labels are known
    after all, whether they are right.
    """
    channel = observed.protection.channel
    if get(observed.client.loss).targets == "probabilities":
        return soft_labels.recovered(observed)
    if observed.protection.infers_sigma:
        raise BadInput("labels are read off a gradient whose noise is told: give its sigma, or leave the labels "
                       "unknown, which sums over them")  # fmt: skip
    result = recover(
        observed.client,
        observed,
        sigma=observed.sigma or 0.0,
        channel="gaussian" if channel is None else channel.name,
        public=observed.public,
    )
    truth = observed.labels
    summary: dict[str, Any] = {
        "labels": result.labels.tolist(),
        "rule": result.rule,
        "confidence": result.confidence,
        "sure": result.sure,
        "right": None if truth is None else result.labels.tolist() == sorted(truth.tolist()),
    }
    provenance = {**observed.provenance, "recovered_labels": summary}
    return replace(observed, labels=result.labels.to(observed.g.device), provenance=provenance)
