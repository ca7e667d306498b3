"""The observation g: the tensors that a client really shared, with all that the server knows of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from pplleak.client import Client, sharing, targets, weights
from pplleak.client.loss import get
from pplleak.client.sharing import NotShared
from pplleak.errors import BadInput, printable
from pplleak.federation.protection import Protection


@dataclass(frozen=True, eq=False)
class Observation:
    """What the adversary sees and knows, and, where the attacker is also the experimenter, the truth.

    g           (update_size,), the shared tensors, flat, in the order of `Client.layers`
    batch_size  examples behind it
    labels      (batch_size,) where the client shared them, else None; rows of `Client.targets`, where it has vectors
    client      who shared it; an inference is handed the client that its adversary believes in, which may be another
    protection  the defence and the channel that it went through, as far as the server knows them
    public      images of the same kind, (N, *input_shape), or None: what a prior may be fitted to
    truth       (batch, *input_shape) or None; no file ever holds it
    latents     the values of the model's sites that a truth drawn from it came from; None for data
    provenance  where all this came from, for the record: data, index, network, settings, …
    public_labels  of the public images, (N,), where they are known: a prior may be fitted to each class
    """

    g: Tensor
    batch_size: int = 1
    labels: Tensor | None = None
    client: Client = field(default_factory=lambda: cast(Client, None))  # none where only an inference reads this
    protection: Protection = Protection()
    public: Tensor | None = None
    truth: Tensor | None = None
    latents: dict[str, Tensor] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    public_labels: Tensor | None = None

    def __post_init__(self) -> None:
        require_batch_size(self.batch_size)

    def to(self, device: torch.device) -> Observation:
        """The same with the client and what it shared on another device."""

        def moved(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device)

        network, targets = copy.deepcopy(self.client.network).to(device), moved(self.client.targets)
        client = replace(self.client, network=network, targets=targets)
        return replace(self, client=client, g=self.g.to(device), labels=moved(self.labels), truth=moved(self.truth))

    @property
    def sigma(self) -> float | None:
        """σ of the channel, where it has one and it is known."""
        return self.protection.sigma


def require_batch_size(batch_size: int) -> None:
    """Raise BadInput for a batch of no examples."""
    if batch_size < 1:
        raise BadInput(f"the batch size must be at least 1, not {batch_size}")


def check_labels(labels: Sequence[Any] | Tensor, num_classes: int, batch_size: int) -> Tensor:
    """Labels as a (batch_size,) tensor; raises BadInput where one is out of range or their number is wrong."""
    given = torch.as_tensor(labels).reshape(-1).tolist() if isinstance(labels, Tensor) else list(labels)
    if len(given) != batch_size:
        raise BadInput(f"{len(given)} labels for a batch of {batch_size}: give one for each example")
    if strange := [v for v in given if not isinstance(v, int) and not (isinstance(v, float) and v.is_integer())]:
        raise BadInput(f"label {printable(strange[0])} is no class: a loss of numbers or vectors says so by its "
                       "setting targets")  # fmt: skip
    given = [int(label) for label in given]
    if strange := [label for label in given if not 0 <= label < num_classes]:  # before torch, whose numbers end at 2⁶³
        raise BadInput(f"label {printable(strange[0])} is out of range: "
                       f"the network knows classes 0 to {num_classes - 1}")  # fmt: skip
    return torch.tensor(given, dtype=torch.long)


def with_targets(client: Client, given: Sequence[Any] | Tensor | None, batch_size: int) -> tuple[Client, Tensor | None]:
    """The client with what it shared of its examples' labels or targets, and the labels (batch_size,) that say so.

    Args:
        given: labels; or vectors, row by row, where its loss compares with vectors; None: it shared none.

    Raises:
        BadInput: of another number than the examples, or impossible ones.
    """
    kind = get(client.loss).targets
    if kind == "input":
        return client, torch.zeros(batch_size, dtype=torch.long, device=client.device)
    if given is None:
        return client, None
    if kind == "classes":
        return client, check_labels(given, client.num_classes, batch_size).to(client.device)
    vectors = targets.rows(kind, given, client.num_classes, batch_size)
    table, labels = targets.table(vectors.to(client.device, client.dtype))
    return replace(client, targets=table), labels


def flatten(client: Client, gradient: Mapping[str, Tensor], where: str = "the observation") -> Tensor:
    """Named tensors as the flat g (update_size,), as `pplleak.client.sharing` names them.

    Raises:
        NotShared: they lack some of the network's parameters. BadInput: they are those of another network.
    """
    gradient = sharing.dense(client.layers, sharing.by_owner(client.network, gradient, where), where)
    missing, extra = [n for n in client.layers if n not in gradient], [n for n in gradient if n not in client.layers]
    if 0 < len(missing) < len(client.layers) and not extra:
        raise NotShared(f"{where} lacks {', '.join(printable(n, 80) for n in missing[:3])}: name the network that it "
                        "is of, or say that only what is there was shared")  # fmt: skip
    weights.same_layers(client.layers, {n: t.shape for n, t in gradient.items()}, where)
    return torch.cat([gradient[n].to(client.device, client.dtype).reshape(-1) for n in client.layers])
