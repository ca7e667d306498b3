"""Labels read off a gradient without optimisation: the rules that classic attacks put before it.

The logits' layer has the gradient Σ_b δ_b a_bᵀ with δ_b = (softmax − e_{y_b}) / B, so that a class's row is negative,
for features a ≥ 0, where the class is in the batch. A model's file names its rule as `labels`, and
`pplleak.studies.attack` follows it where the client did not share them. Without one, labels are summed out exactly.
"""

from __future__ import annotations

from torch import Tensor

from pplleak.client import Client
from pplleak.client.last_layer import last_layer
from pplleak.client.loss import require_cross_entropy
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation


def of_one(client: Client, observed: Observation) -> Tensor:
    """y (1,) of a single example, by the one negative δ (Zhao et al. 2020, iDLG).

    δ is the gradient of the logits' bias; without a bias, y is the row that points away from the most others.

    Raises:
        BadInput: a batch of several; a network that does not end in a linear layer with a row for each class.
    """
    if observed.batch_size != 1:
        raise BadInput(
            f"iDLG reads the label of one example, not of {observed.batch_size}: take the model gradinversion"
        )
    weight, bias = _logits_layer(client, observed.g)
    if bias is not None:
        return bias.argmin().reshape(1)
    return ((weight @ weight.mT) < 0).sum(1).argmax().reshape(1)


def of_distinct(client: Client, observed: Observation) -> Tensor:
    """y (batch,) of a batch without repeated labels: the rows with the most negative entries (Yin et al. 2021).

    Raises:
        BadInput: more examples than classes; a network that does not end in a linear layer with a row for each class.
    """
    if observed.batch_size > client.num_classes:
        raise BadInput(
            f"{observed.batch_size} examples of {client.num_classes} classes repeat a label, and this rule reads "
            "distinct ones: give the labels, or take a model without a rule"
        )
    weight, _ = _logits_layer(client, observed.g)
    return weight.amin(1).argsort()[: observed.batch_size].sort().values


def _logits_layer(client: Client, g: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradient of the last layer's weight (classes, features), and of its bias (classes,) where it has one."""
    require_cross_entropy(client.loss, "a model's rule reads labels off the gradient of")
    layer = last_layer(client, "give them, or take a model without a rule")
    parts = client.split(g)
    return parts[layer.weight], parts[layer.bias] if layer.bias else None
