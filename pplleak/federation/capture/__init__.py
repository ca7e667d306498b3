"""Capture: a client's own training step, in its own code, as an observation file and a private one beside it.

    with pl.record(network, "audit/round-1-client-3.safetensors"):
        train(network, loader)          # the user's own

What is shared goes into the file that is named, as `pplleak.federation.files` writes it: weights and buffers before,
the update or the gradient, loss, optimiser, batch size, mode. The private batch goes into another file
(`pplleak.federation.capture.private`), which is the auditor's alone. `flower.recorder` does this in every round of a
Flower client; `flower.server_recorder` and `nvflare.Recorder` write down what a server sees, which is no private batch.
"""

from pplleak.federation.capture.private import Private, read
from pplleak.federation.capture.record import record

__all__ = ["Private", "read", "record"]
