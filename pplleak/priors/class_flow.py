"""A normalising flow that is told the class, on the class's own principal components: p(x | y), its density exact."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pplleak.errors import BadInput, require_positive
from pplleak.priors._contract import Like
from pplleak.priors._fitting import Kept, Training, apart, descended, epochs_of, one_cycle
from pplleak.priors._labelled import require_classes, require_given
from pplleak.priors._splines import Flow, coupling_spline, restored_spline
from pplleak.priors._store import trained
from pplleak.priors.class_gaussian import ClassGaussian, fit_class_gaussian, restore_class_gaussian
from pplleak.priors.gaussian import standard_normal, standard_normal_log_prob
from pplleak.progress import ProgressBar, silent

if TYPE_CHECKING:
    import zuko


@dataclass(frozen=True, eq=False)
class ClassFlow:
    """x | y = means_y + factors_y (w, z),   z | y ~ flow(e_y),   w ~ Normal(0, I)

    base  the Gaussians of the classes, whose principal components are the coordinates; it holds the labels
    flow  a neural spline flow with coupling layers (Durkan et al. 2019) over the `rank` leading coefficients z, which
          sees the class as a unit vector e_y: one network for all classes, so that a class of few images learns from
          the others
    """

    base: ClassGaussian
    flow: zuko.flows.Flow
    rank: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.base.input_shape

    @property
    def classes(self) -> int:
        return len(self.base.means)

    def of_class(self, y: Tensor) -> ClassFlow:
        """p(x | y) for labels y (…, batch); raises BadInput for a label that no class here has."""
        return replace(self, base=self.base.of_class(require_classes("class_flow", y, self.classes)))

    def sample(self, batch_size: int = 1) -> Tensor:
        """Sites z, w and x; x (…, *chains, batch_size, *input_shape), where … are the leading dimensions of y."""
        z = pyro.sample("z", self.leading())
        w = pyro.sample("w", self.rest(batch_size))
        x: Tensor = pyro.deterministic("x", self.decode(z, w))
        return x

    def leading(self) -> TorchDistribution:
        """z | y for the labels that were given, event shape (batch, rank)."""
        y = require_given("class_flow", self.base.labels)
        return Flow(self._given(y)).to_event(1)

    def _given(self, y: Tensor) -> zuko.distributions.Distribution:
        return self.flow(torch.eye(self.classes).to(self.base.means)[y.long()])  # `one_hot` looks at y: see `numbers`

    def rest(self, batch_size: int = 1) -> TorchDistribution:
        """w ~ Normal(0, I), event shape (batch_size, pixels − rank)."""
        return standard_normal(self.base.means, batch_size, self.base.means.shape[1] - self.rank)

    def decode(self, z: Tensor, w: Tensor) -> Tensor:
        """z (*chains, batch, rank), w (*chains, batch, pixels − rank) -> x (…, *chains, batch, *input_shape)."""
        return self.base.decode_parts(w, z)

    def draw(self, count: int) -> Tensor:
        """x ~ p(x), (count, *input_shape), every class as likely as any other, by torch's generator."""
        of = self.of_class(torch.randint(self.classes, (count,), device=self.base.means.device))
        with torch.no_grad():
            return of.decode(of.leading().sample(), of.rest(count).sample())

    def log_prob(self, x: Tensor) -> Tensor:
        """log (1/K) Σ_y p(x | y) for x (N, *input_shape); (N,), float64."""
        return self.log_prob_each(x).logsumexp(-1) - math.log(self.classes)

    @torch.no_grad()
    def log_prob_each(self, x: Tensor) -> Tensor:
        """log p(x | y) of x (N, *input_shape) for every class, (N, classes), float64."""
        found = []
        for k, (coefficients, log_det) in enumerate(self.base.encoded(x)):
            w, z = coefficients[:, : -self.rank], coefficients[:, -self.rank :]
            flow = self._given(torch.full((len(x),), k, device=x.device))
            found.append(flow.log_prob(z.to(self.base.means.dtype)).double() + standard_normal_log_prob(w) - log_det)
        return torch.stack(found, -1)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it; numbers of the flow that are not fitted (masks, orders) follow from its sizes."""
        base = {f"base.{n}": t for n, t in self.base.tensors().items()}
        return base | {f"flow.{n}": t for n, t in self.flow.named_parameters()}


def prior(like: Like, *, reference: str | Tensor = "digits", labels: Tensor | None = None, file: str = "") -> ClassFlow:
    """The fitted flow of a file, or one that is fitted to public images with their labels, once, and kept.

    Args:
        reference: the public images that it is fitted to where no file is named: a name or a folder of `pplleak.data`,
            or a tensor of them.
        labels: theirs, (N,), where the images are a tensor; a name knows its own.
        file: a flow of `pplleak prior fit class_flow`, by name or path.
    """
    shape = tuple(like.input_shape)
    fitted: ClassFlow = trained("class_flow", file, reference, shape, like.dtype, like.device, labels)
    return fitted


def fit(
    images: Tensor,
    labels: Tensor,
    *,
    rank: int = 16,
    hidden: int = 64,
    floor: float = 0.02,
    pooled: float = 16.0,
    epochs: int = 60,
    steps: int = 3000,
    batch: int = 128,
    lr: float = 2e-3,
    decay: float = 1e-2,
    seed: int = 0,
    progress: ProgressBar = silent,
    kept: Kept | None = None,
) -> ClassFlow:
    """The Gaussians of the classes in closed form, then one flow for all of them by maximum likelihood (AdamW).

    Args:
        images: (N, *input_shape), pixels in [0, 1]. labels: (N,).
        rank: leading principal components of a class that the flow describes; what is left stays Gaussian.
        hidden: width of the flow's networks.
        floor: standard deviation of the noise that the images are seen through, in pixel units.
        pooled: of how many images of its own a class's covariance counts what all classes have in common.
        epochs: passes of the flow over the images,
        steps: or so many optimisation steps, whichever ends first.
        batch: images a step.
        lr: the highest learning rate.
        decay: AdamW's weight decay.
        kept: where the state is kept, to go on from (`pplleak.priors._fitting`).

    Raises:
        Interrupted: Ctrl-C, with the flow as it is; a plain KeyboardInterrupt before the flow's first epoch's end.
    """
    require_positive(rank=rank, hidden=hidden, floor=floor, epochs=epochs, steps=steps, batch=batch, lr=lr)
    labels = labels.long()
    base = fit_class_gaussian(images, labels, int(labels.max()) + 1, floor, pooled, torch.float32)
    classes, pixels = base.means.shape
    rank = min(rank, pixels - 1)
    if rank < 2:
        raise BadInput("a flow prior needs images of at least 3 pixels")
    z = torch.empty(len(images), rank)
    for k in range(classes):
        z[labels == k] = base.encode(images[labels == k], k)[0][:, -rank:].float()
    noise = (floor / base.factors.norm(dim=1)[:, -rank:])[labels]
    with apart(seed):
        flow = coupling_spline(rank, hidden=hidden, context=classes, activation=nn.SiLU, dtype=torch.float32)
        each, epochs = epochs_of(len(z), batch, epochs, steps)
        adam = torch.optim.AdamW(flow.parameters(), lr=lr, weight_decay=decay)
        training = Training(flow, adam, one_cycle(adam, lr, each * epochs))
        of = nn.functional.one_hot(labels, classes).float()

        def loss(part: Tensor) -> Tensor:
            return -flow(of[part]).log_prob(z[part] + noise[part] * torch.randn(len(part), rank)).mean()

        found: ClassFlow = descended(
            lambda: ClassFlow(base, flow.requires_grad_(False), rank), loss, training, len(z), batch, epochs,
            stage="class_flow", label="flow", clip=10.0, progress=progress, kept=kept,
        )  # fmt: skip
        return found


def restore(tensors: dict[str, Tensor], input_shape: tuple[int, ...], dtype: torch.dtype) -> ClassFlow:
    """The prior that `tensors()` came from, in precision `dtype`; raises BadInput where they are no such flow's."""
    base = restore_class_gaussian(tensors, input_shape, dtype, prefix="base.")
    own = {n.removeprefix("flow."): t for n, t in tensors.items() if n.startswith("flow.")}
    flow, rank = restored_spline(own, dtype, context=len(base.means))
    if rank >= math.prod(input_shape):
        raise BadInput("the tensors of its flow are not those of a spline flow")
    return ClassFlow(base, flow, rank)
