"""An observation as an audit's adversary has it: with the labels that it knows, or shared anew behind a protection."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pplleak import channels
from pplleak.density import label_recovery
from pplleak.errors import BadInput, printable
from pplleak.federation import capture
from pplleak.federation.observation import Observation, check_labels
from pplleak.federation.protection import Protection
from pplleak.priors import labels as label_priors
from pplleak.studies.audit import counted
from pplleak.studies.audit.plan import Item

Labels = Literal["auto", "known", "unknown", "recovered"]
MOST_PLACES = 32  # of an order that is looked for, over all epochs: a look is up to 500 local trainings at a stretch


def prepared(item: Item, observed: Observation, labels: Labels) -> tuple[Observation, str, str]:
    """An observation with the truth, where it is there, and with the labels as this adversary has them; how it has
    them, and what is assumed beside what the file says.

    labels: known: as the file says them, else those of the private batch, as if they had been shared; recovered: read
    off the gradient; unknown: summed over; auto: those that were shared; else read off the gradient, where that is
    sure; else summed over, where they are few and of images; else known.

    Raises:
        BadInput: the labels cannot be had that way, or the private batch is another one.
    """
    assumed = []
    if item.truth is not None:
        kept = capture.read(item.truth)
        if tuple(kept.x.shape) != (observed.batch_size, *observed.client.input_shape):
            raise BadInput(f"{printable(item.truth)} holds inputs {tuple(kept.x.shape)}, and the observation is of "
                           f"{observed.batch_size} of {observed.client.input_shape}: it is of another one")  # fmt: skip
        counted.require(kept.x, observed, str(item.truth))
        true = check_labels(kept.y, observed.client.num_classes, observed.batch_size).to(observed.g.device)
        observed = replace(observed, truth=kept.x.to(observed.client.device, observed.client.dtype))
        shuffled = not kept.in_order
    else:
        true, shuffled = None, True  # as far as anybody knows
    if observed.labels is None or labels in ("unknown", "recovered"):
        observed, how, said = _labels(observed, true, labels)
        assumed += said
    else:
        how = "shared by the client"
    local, spent = observed.client.local, observed.provenance.get("privacy") or {}
    if spent.get("steps", 1) > 1 and not item.behind:
        assumed.append(f"the server sees each of the client's {spent['steps']:g} steps of DP-SGD, as ε supposes, and "
                       "not only where they lead (the worst case)")  # fmt: skip
    if item.behind:
        assumed.append("the client as it is modelled shared it anew, and the server knows the protection")
    elif local is not None and local.batch_size is not None and observed.protection.is_channel("gaussian"):
        observed = replace(observed, protection=observed.protection.with_sigma(channels.INFER))
        places = 0 if local.epochs is None else local.epochs * observed.batch_size
        if shuffled and local.batch_size < observed.batch_size and 0 < places <= MOST_PLACES:
            client = replace(observed.client, local=replace(local, shuffle=True))
            observed = replace(observed, client=client)
            assumed.append("the client draws the order of its examples anew in every epoch, which the server does not "
                           "know; what an attack has wrong of it is like noise, of a σ that is inferred")  # fmt: skip
        else:
            assumed.append("what the client's order of examples changes is like noise, of a σ that is inferred")
    return observed, how, "; ".join(assumed)


def shared_anew(item: Item, observed: Observation, seed: int) -> tuple[Observation, float | None]:
    """The private batch of an item shared behind its protection, and what that leaves of the update's direction: the
    cosine between what the server sees and the update; None where that has other entries.

    Raises:
        BadInput: the protection does not go with this client.
    """
    assert item.truth is not None
    kept, client = capture.read(item.truth), observed.client
    x, y = kept.x.to(client.device, client.dtype), kept.y.to(client.device)
    protection = Protection.parse(item.behind).filled().observable()
    if protection.is_channel("dpsgd"):
        channels.require_examples(client, len(y))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed} {item.name} {item.behind}".encode()))
        u, g = client.update(x, y).materialise().double(), protection.share(client, x, y, observed.public)
    cosine = float(u @ g.double() / (u.norm() * g.double().norm())) if u.shape == g.shape else None
    provenance = {n: v for n, v in observed.provenance.items() if n != "privacy"}
    return replace(observed, g=g, protection=protection, provenance=provenance), cosine


def _labels(observed: Observation, true: Tensor | None, labels: Labels) -> tuple[Observation, str, list[str]]:
    """An observation whose labels were not shared, or are not to be taken, with those of the adversary."""
    hidden = replace(observed, labels=None)
    few = observed.client.num_classes**observed.batch_size <= label_priors.Labels.MAX_ENUMERATED
    few = few and not counted.discrete(observed)  # whose samplers take labels as given
    if labels in ("auto", "recovered"):
        try:
            found = label_recovery.recovered(hidden)
        except BadInput:
            if labels == "recovered":
                raise
        else:
            sure = found.provenance["recovered_labels"]["sure"]
            if sure or labels == "recovered":
                return found, "read off the gradient", [] if sure else ["the labels that were read are right"]
    if labels == "unknown" or (labels == "auto" and few):
        return hidden, "unknown: summed over", []
    if true is None:
        raise BadInput("the labels were not shared, and the auditor has none to give: name the folder of private "
                       "batches, or let them be recovered")  # fmt: skip
    return replace(observed, labels=true), "told to the adversary", ["the server knows the labels (the worst case)"]
