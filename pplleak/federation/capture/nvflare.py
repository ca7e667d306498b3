"""NVIDIA FLARE: a filter on the server that writes down what it sends and gets (the extra `pplleak[nvflare]`).

    job.to_server(Recorder("/home/me/seen", "net.py:Net", [1, 28, 28], 10, lr=0.01, epochs=1, batch_size=32),
                  filter_type=FilterType.TASK_DATA, tasks=["train"])
    job.to_server(the same, filter_type=FilterType.TASK_RESULT, tasks=["train"])

The first sees the weights that go out, the second what comes back. Neither changes anything. A client records its own
private batch by `pl.record` around the training in its script.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.dxo import DataKind
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.filter import FilterChainType, FilterContextKey

from pplleak.client import networks
from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput, printable
from pplleak.federation.capture import server
from pplleak.federation.capture.server import Known
from pplleak.settings import Named

ROUND = "current_round"
_SENT: dict[tuple[str, int], dict[str, torch.Tensor]] = {}  # by folder and round: two filters, one process


class Recorder(DXOFilter):
    """Writes round-R-client-SITE.safetensors into a folder for every update.

    Plain values only, which a job's configuration can hold.

    Args:
        network: FILE.py:CLASS or FILE.py:FUNCTION, or a name of pplleak's with its settings.
        lr, epochs, batch_size, optimizer: what a client does with its examples, as `LocalTraining` says it.
        examples: behind an update. loss, normalise, protection: as `Known` has them.
    """

    def __init__(
        self,
        folder: str,
        network: str,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        lr: float,
        examples: int,
        epochs: int | None = None,
        batch_size: int | None = None,
        optimizer: str = "sgd",
        loss: str = "cross_entropy",
        normalise: Sequence[float] = (),
        protection: str = "none",
    ) -> None:
        super().__init__([DataKind.WEIGHTS, DataKind.WEIGHT_DIFF], [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF])
        self.folder, self.network, self.input_shape, self.num_classes = folder, network, input_shape, num_classes
        self.lr, self.examples, self.epochs, self.batch_size = lr, examples, epochs, batch_size
        self.optimizer, self.loss, self.normalise, self.protection = optimizer, loss, normalise, protection
        named = Named.parse(network)
        build = networks.load(named.name)
        self._known = Known(
            build(tuple(input_shape), num_classes, **named.settings), tuple(input_shape), num_classes,
            LocalTraining(lr, epochs=epochs, batch_size=batch_size, optimizer=Named.parse(optimizer)), examples,
            network, loss, tuple(normalise), protection,
        )  # fmt: skip

    def process_dxo(self, dxo: Any, shareable: Any, fl_ctx: Any) -> None:
        number = int(shareable.get_header(ROUND, 0))
        weights = {n: torch.as_tensor(v) for n, v in dxo.data.items()}
        key = (self.folder, number)
        if self.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN:
            for old in [k for k in _SENT if k[0] == self.folder and k[1] < number]:
                del _SENT[old]
            _SENT[key] = {n: w.clone() for n, w in weights.items()}
            return
        peer = fl_ctx.get_peer_context()
        site = re.sub(r"[^\w-]", "_", str(peer.get_identity_name() if peer else "unknown"))
        name = f"round-{number}-client-{site}"
        try:
            if key not in _SENT:
                raise BadInput("the weights that were sent were not seen: filter the task data, too")
            before = _SENT[key]
            if dxo.data_kind == DataKind.WEIGHT_DIFF:
                weights = {n: before[n] + w for n, w in weights.items() if n in before}
            server.write(Path(self.folder) / f"{name}.safetensors", self._known, before, weights)
        except BadInput as error:
            warnings.warn(f"{name} was not recorded: {printable(error, 500)}", UserWarning, stacklevel=1)
