"""Labels that are not hard, read off the gradient of one example: smoothed, mixed or distilled ones, in closed form.

For logits W a + b of one example with target probabilities q (num_classes,) and the cross entropy,

    ∂ℓ/∂b = p − q,   ∂ℓ/∂W = (p − q) aᵀ,   p = softmax(W a + b)

The quotient of both is the feature vector a, which gives the logits, p, and q = p − ∂ℓ/∂b: nothing is searched. Where
the layer has no bias, or there is noise, q is a latent on the simplex (`optimal`), and this is where it begins.

Source: Wang, Liang and He 2024 (Towards Eliminating Hard Label Constraints in Gradient Inversion Attacks), whose search
for the scale of a is not needed where the layer has a bias.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.client.last_layer import last_layer
from pplleak.client.loss import get
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation, with_targets
from pplleak.settings import Named

INSTEAD = "leave the targets unknown, which infers them with the image (optimal)"
OFF = 1e-2  # by which the entries found may miss the simplex: more is noise, or not one example


@torch.no_grad()
def of_one(client: Client, observed: Observation) -> Tensor:
    """q (num_classes,) of one example, float64.

    Raises:
        BadInput: several examples; another loss; no linear last layer with a bias; entries that are no probabilities.
    """
    loss = get(client.loss)
    if loss.name != "cross_entropy" or loss.targets != "probabilities" or loss.weights or client.local is not None:
        raise BadInput(f"probabilities are read off one gradient of the cross entropy without weights of the classes: "
                       f"{INSTEAD}")  # fmt: skip
    if observed.batch_size != 1:
        raise BadInput(f"probabilities are read off a gradient of one example, not of {observed.batch_size}: "
                       f"{INSTEAD}")  # fmt: skip
    layer = last_layer(client, INSTEAD)
    if not layer.bias:
        raise BadInput(f"without a bias the last layer does not say how long its input is: {INSTEAD}")
    parts = client.split(observed.g)
    delta = parts[layer.bias].double()
    features = (delta @ parts[layer.weight].double()) / delta.square().sum().clamp(min=1e-300)
    logits = layer.module.weight.double() @ features + layer.module.bias.double()
    smoothing = float(Named.parse(client.loss).settings.get("label_smoothing", 0.0))  # the loss's own, on top of q
    q = (logits.softmax(0) - delta - smoothing / len(delta)) / max(1 - smoothing, 1e-300)
    if not (q.isfinite().all() and (q > -OFF).all() and abs(float(q.sum()) - 1) < OFF):
        raise BadInput("what the last layer's gradient says of the targets is no probabilities: there is noise, or "
                       f"more than one example: {INSTEAD}")  # fmt: skip
    q = q.clamp(min=0.0)
    return q / q.sum()


def recovered(observed: Observation) -> Observation:
    """The observation as an adversary sees it who recovers the probabilities, whatever was shared of them."""
    q = of_one(observed.client, observed)
    client, labels = with_targets(observed.client, q[None], observed.batch_size)
    summary = {"labels": [int(q.argmax())], "rule": "soft, from the last layer", "confidence": None, "sure": False,
               "right": None, "probabilities": [round(float(v), 6) for v in q]}  # fmt: skip
    provenance = {**observed.provenance, "recovered_labels": summary}
    return replace(observed, client=client, labels=labels, provenance=provenance)
