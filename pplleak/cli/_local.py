"""What the command line can be told of a client's local training."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import tyro

from pplleak import signatures, sources
from pplleak.cli import _named as named

if TYPE_CHECKING:
    from pplleak.client.training import Shares
    from pplleak.studies.attack.training import Unknown
else:
    Unknown = signatures.kind(sources.module("pplleak.studies.attack.training"), "Unknown")
    Shares = signatures.kind(sources.module("pplleak.client.training"), "Shares")


@dataclasses.dataclass(frozen=True)
class Local:
    """What a client trains on its own before it shares how its weights moved (FedAvg): with --local-lr."""

    local_lr: float | None = None
    """Learning rate of local training; None: the client shares its gradient."""
    local_steps: int = 1
    """Steps that the client takes, each with the next examples of its batch, round and round."""
    local_epochs: int | None = None
    """Instead of steps: passes over the client's batch, as a DataLoader makes them, with a last batch that may be
    short."""
    local_batch_size: int | None = None
    """Examples a step (default: all of them)."""
    local_drop_last: bool = False
    """With --local-epochs: leave a short last batch out."""
    local_shuffle: bool = False
    """With --local-epochs: the client draws the order of its examples anew in every epoch, and the server does not know
    it."""
    local_optimizer: Annotated[
        str,
        tyro.conf.arg(help=f"NAME:SETTING=VALUE,… of {named.written(named.algorithms('optimizer'))}."),
    ] = "sgd"
    local_schedule: Annotated[
        str,
        tyro.conf.arg(help=f"Of the learning rate: {named.written(named.algorithms('schedule'))}."),
    ] = "constant"
    local_clip: float | None = None
    """Clip the gradient of all parameters together at this norm before every step."""
    local_prox: float = 0.0
    """Weight μ of FedProx' term μ/2 ‖θ − θ_0‖² in the client's loss."""
    local_shares: Shares = "difference"
    """What is shared of the movement: difference, θ_after − θ_before; negative, θ_before − θ_after; rate, that divided
    by the learning rate."""


UNSAID = Local()  # nothing was said: a client shares its gradient
LocalFlags = Annotated[Local, tyro.conf.arg(name="")]
