"""Flower: every round of every client of an app, recorded by one line (the extra `pplleak[flower]`).

    app = ClientApp(client_fn=client_fn, mods=[recorder("/home/me/audit")])          # or above @app.train()

A mod is called around a client's work, in the process where that runs; it changes no message. What other mods do with
the reply afterwards (noise, secure aggregation) is not seen.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pplleak.errors import BadInput, printable
from pplleak.federation.capture import server
from pplleak.federation.capture.record import record
from pplleak.federation.capture.server import Known

NAME = re.compile(r"round-(?P<round>\d+)-client-(?P<client>.+?)(-step-\d+)?")
WORK = "train"  # the kind of message whose work is recorded; others evaluate, or ask


def recorder(folder: str | Path, **settings: Any) -> Callable[[Any, Any, Callable[[Any, Any], Any]], Any]:
    """A mod for `flwr.clientapp.ClientApp(mods=[…])`: files round-R-client-C.safetensors in a folder, and of a client
    that trains by Opacus round-R-client-C-step-S.safetensors.

    C is the client's partition where the app has partitions, else its node's number. A round that cannot be said by an
    observation is passed over with a warning that says why: the client goes on.

    Args:
        folder: taken from where the app is defined; in a simulation all clients write into it.
        settings: of `record`: `source`, `normalise`, …
    """
    folder = Path(folder).resolve()

    def mod(message: Any, context: Any, call_next: Callable[[Any, Any], Any]) -> Any:
        kind = str(message.metadata.message_type)
        if kind.partition(".")[0] != WORK:
            return call_next(message, context)
        client = re.sub(r"[^\w-]", "_", str(context.node_config.get("partition-id", context.node_id)))
        name = f"round-{_round(message, folder, client)}-client-{client}"
        reply: list[Any] = []
        try:
            with record(None, folder / f"{name}.safetensors", **settings):
                reply.append(call_next(message, context))
        except BadInput as error:
            if not reply:  # the client's own
                raise
            warnings.warn(f"{name} was not recorded: {printable(error, 500)}", UserWarning, stacklevel=1)
        return reply[0]

    return mod


def _round(message: Any, folder: Path, client: str) -> int:
    """The round that the server's strategy says; else one more than was recorded of this client."""
    for record_of in message.content.config_records.values():
        for key in ("server-round", "server_round", "current_round"):
            if isinstance(number := record_of.get(key), int):
                return number
    named = (NAME.fullmatch(p.stem) for p in folder.glob("round-*-client-*.safetensors"))
    return 1 + max((int(n["round"]) for n in named if n and n["client"] == client), default=0)


def server_recorder[Strategy](strategy: Strategy, folder: str | Path, known: Known) -> Strategy:
    """A strategy of `flwr.serverapp.strategy` that writes down what it sees, round-R-client-NODE.safetensors in a
    folder for every update, and nothing of the private batches, which a server does not have.

        known = Known(Net(), (1, 28, 28), 10, LocalTraining(0.01, epochs=1, batch_size=32))
        strategy = server_recorder(FedAvg(), "/home/me/seen", known)

    An update that cannot be written down is passed over with a warning that says why: the federation goes on.

    Returns:
        The same strategy: its `configure_train` and `aggregate_train` are watched.
    """
    folder, anything = Path(folder).resolve(), cast(Any, strategy)
    configure, aggregate = anything.configure_train, anything.aggregate_train
    sent: dict[int, dict[str, Any]] = {}

    def configure_train(server_round: int, arrays: Any, *args: Any, **kwargs: Any) -> Any:
        sent.clear()
        sent[server_round] = arrays.to_torch_state_dict()
        return configure(server_round, arrays, *args, **kwargs)

    def aggregate_train(server_round: int, replies: Any, *args: Any, **kwargs: Any) -> Any:
        replies = list(replies)
        for reply in replies:
            if reply.has_error():
                continue
            name = f"round-{server_round}-client-{reply.metadata.src_node_id}"
            try:
                (arrays,) = reply.content.array_records.values()
                counts = [m["num-examples"] for m in reply.content.metric_records.values() if "num-examples" in m]
                server.write(folder / f"{name}.safetensors", known, sent[server_round], arrays.to_torch_state_dict(),
                             int(counts[0]) if counts else None)  # fmt: skip
            except (BadInput, ValueError, KeyError) as error:
                warnings.warn(f"{name} was not recorded: {printable(error, 500)}", UserWarning, stacklevel=1)
        return aggregate(server_round, replies, *args, **kwargs)

    anything.configure_train, anything.aggregate_train = configure_train, aggregate_train
    return strategy
