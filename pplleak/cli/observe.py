"""Write the gradient a client shares as an observation file, for `attack --observed`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pplleak.cli._options import Victim, groups, options, parse
from pplleak.errors import BadInput
from pplleak.settings import Named


@dataclasses.dataclass(frozen=True)
class Observe(Victim):
    gradient: Path | None = None
    """Wrap this safetensors file of named gradients (yours) instead of computing one from the data."""
    input_shape: tuple[int, ...] | None = None
    """With --gradient: the shape of one example, e.g. 1 28 28."""
    num_classes: int = 10
    """With --gradient: the number of the network's logits."""
    shared_labels: tuple[int, ...] | None = None
    """With --gradient: the labels, where the client shared them."""
    out: Path = Path("observation.safetensors")
    """The file to write."""


def run(argv: Sequence[str]) -> int:
    args = parse(Observe, "observe", argv, groups(Observe, argv, "network", "channel", "defence"))
    if args.labels == "recovered":
        raise BadInput("a client shares its labels or not: --labels known or unknown; recover them in `pplleak attack`")
    if args.gradient is not None and args.input_shape is None:
        raise BadInput("--gradient needs --input-shape, the shape of one example: --input-shape 1 28 28")

    from pplleak.cli import _arguments as arguments
    from pplleak.federation.scenario import save

    save(arguments.observed(args) if args.gradient is None else _wrapped(args), args.out)
    code = f" --network {args.network}" if ":" in args.network else ""  # a file is not let choose code to run
    print(f"written to {args.out}; attack it with: pplleak attack --observed {args.out}{code}")
    return 0


def _wrapped(args: Any) -> Any:
    """The user's own gradient, checked against the user's own network."""
    from pplleak.cli import _arguments as arguments
    from pplleak.federation import files
    from pplleak.federation.observation import Observation, check_labels, flatten
    from pplleak.federation.scenario import build_client

    shared, network = files.read(args.gradient), Named(args.network, options(args, "network"))
    protection = arguments.protection(args)
    client = build_client(
        network, args.input_shape, args.num_classes, seed=args.seed, dtype=args.dtype, parameters=shared.parameters,
        where=str(args.gradient), checkpoint=args.checkpoint, local=arguments.local(args), defence=protection.defence,
    )  # fmt: skip
    g = flatten(client, shared.gradient, str(args.gradient))
    labels = None
    if args.shared_labels is not None:
        labels = check_labels(list(args.shared_labels), args.num_classes, args.batch_size)
    provenance = {"network": network.name, "network_settings": dict(network.settings)}
    return Observation(g, args.batch_size, labels, client, protection, provenance=provenance)
