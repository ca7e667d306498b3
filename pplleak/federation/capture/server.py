"""What a server sees: the weights that it sent, those that came back, and what it knows of its clients beside them.

No private batch is seen here, and no training: what `record` reads off PyTorch is said by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput, printable
from pplleak.federation import files
from pplleak.federation.capture.record import source_of
from pplleak.federation.protection import Protection
from pplleak.settings import Named


@dataclass(frozen=True)
class Known:
    """What a server knows of every client.

    network      the clients' module: which entries are its parameters, and in which mode it is trained
    input_shape  of one example. num_classes: of its logits
    local        what a client does between the weights that it gets and those that it sends
    examples     behind an update, where the client does not say it
    source       what rebuilds the network, FILE.py:CLASS or FILE.py:FUNCTION; its class where none is given
    loss, normalise   as `record` takes them
    protection   what an update goes through on its way, where the server knows of anything
    """

    network: nn.Module
    input_shape: Sequence[int]
    num_classes: int
    local: LocalTraining
    examples: int | None = None
    source: str = ""
    loss: str = "cross_entropy"
    normalise: Sequence[float] = ()
    protection: str = "none"


def write(
    path: Path, known: Known, before: Mapping[str, Tensor], after: Mapping[str, Tensor], examples: int | None = None
) -> None:
    """An observation of one update.

    Args:
        before, after: the state dicts that were sent and that came back. examples: as the client
            says, where it does.

    Raises:
        BadInput: one lacks a parameter of the network; nobody says how many examples there were; what came back holds
            NaN or infinity.
    """
    parameters = {n: p for n, p in known.network.named_parameters() if p.requires_grad}
    if missing := sorted(n for n in parameters if n not in before or n not in after):
        raise BadInput(f"what was sent or came back lacks {printable(missing[0], 80)}, a parameter of the network: "
                       "share its state_dict() by name")  # fmt: skip
    size = examples or known.examples
    if not size:
        raise BadInput("nobody says how many examples are behind an update: let the client report it, or say it")
    shared = {n: known.local.factor * (after[n].to(p) - before[n].to(p)) for n, p in parameters.items()}
    if not all(t.isfinite().all() for t in shared.values()):
        raise BadInput("what came back holds NaN or infinity: the client's training diverges")
    weighed = torch.cat([before[n].double().reshape(-1) for n in parameters]).square().mean().sqrt()
    eps = max(torch.finfo(p.dtype).eps for p in parameters.values())
    sigma = max(files.rounding(shared), abs(known.local.factor) * float(eps * weighed))
    protection = Protection.parse(known.protection)
    if protection.channel is None:
        protection = Protection(protection.defence, Named("gaussian", {"sigma": sigma}))
    files.write(
        path, shared, input_shape=tuple(known.input_shape), num_classes=known.num_classes,
        network=Named.parse(known.source or source_of(known.network)), parameters=dict(before), batch_size=size,
        local=known.local, loss=known.loss, normalise=known.normalise, mode="train", protection=protection,
    )  # fmt: skip
