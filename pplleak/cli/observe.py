"""Write the gradient a client shares as an observation file, for `attack --observed`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pplleak.cli._options import Victim, groups, options, parse
from pplleak.errors import BadInput
from pplleak.settings import Named


@dataclasses.dataclass(frozen=True)
class Observe(Victim):
    tables: ClassVar[bool] = True
    texts: ClassVar[bool] = True
    gradient: Path | None = None
    """Wrap this safetensors file of named gradients (yours) instead of computing one from the data."""
    input_shape: tuple[int, ...] | None = None
    """With --gradient: the shape of one example, e.g. 1 28 28."""
    num_classes: int = 10
    """With --gradient: the number of the network's logits."""
    shared_labels: tuple[float, ...] | None = None
    """With --gradient: the labels, where the client shared them; with a loss of targets=real, binary or probabilities
    the numbers that each example is mapped onto, example by example."""
    clean: bool = False
    """With --gradient: nothing was added to it. σ is then what rounding comes to: the precision of the
    file's numbers (float32, float16, bfloat16) times their root mean square."""
    shared_only: bool = False
    """With --gradient: trainable layers that are missing from the file were not shared."""
    private: Path | None = None
    """Folder that the private batch is written into, too, under the observation's name: only an auditor keeps it, who
    scores attacks by it (`pplleak audit --truth`)."""
    out: Path = Path("observation.safetensors")
    """The file to write."""


def run(argv: Sequence[str]) -> int:
    args = parse(Observe, "observe", argv, groups(Observe, argv, "network", "channel", "defence"))
    if args.labels == "recovered":
        raise BadInput("a client shares its labels or not: --labels known or unknown; recover them in `pplleak attack`")
    if args.gradient is not None and args.input_shape is None:
        raise BadInput("--gradient needs --input-shape, the shape of one example: --input-shape 1 28 28")
    if args.gradient is None and args.clean:
        raise BadInput("--clean is said of a gradient of your own: add --gradient, or take --channel none")
    if args.gradient is None and args.shared_only:
        raise BadInput("--shared-only is said of a gradient of your own: add --gradient FILE")
    if args.gradient is not None and args.private is not None:
        raise BadInput("of a gradient of your own, nothing here knows the private batch: leave --private out")
    if args.clean and args.sigma is not None:
        raise BadInput("--clean says that no noise was added, and --sigma how much: leave one of them out")

    from pplleak.cli import _arguments as arguments
    from pplleak.federation.stored import save
    from pplleak.studies.attack.report import signal

    observed = arguments.observed(args) if args.gradient is None else _wrapped(args)
    save(observed, args.out)
    if args.private is not None:
        _keep(observed, args.private / args.out.name, args)
    print(signal(observed))
    code = f" --network {args.network}" if ":" in args.network else ""  # a file is not let choose code to run
    code += f" --loss {args.loss}" if ".py:" in args.loss else ""
    print(f"written to {args.out}; attack it with: pplleak attack --observed {args.out}{code}")
    return 0


def _keep(observed: Any, path: Path, args: Any) -> None:
    """The private batch of an observation, for the auditor."""
    from pplleak.cli import _arguments as arguments
    from pplleak.federation.capture import private
    from pplleak.federation.scenario import batch

    assert observed.truth is not None
    private.write(path, observed.truth, batch(arguments.scenario(args))[1], [list(range(observed.batch_size))])


def _wrapped(args: Any) -> Any:
    """The user's own gradient, checked against the user's own network."""
    from pplleak.cli import _arguments as arguments
    from pplleak.client import sharing, sizes
    from pplleak.federation import files
    from pplleak.federation.observation import Observation, flatten, require_batch_size, with_targets
    from pplleak.federation.scenario import build_client
    from pplleak.federation.stored import require_weights

    shared, network = files.read(args.gradient), Named(args.network, options(args, "network"))
    protection, where = arguments.protection(args), str(args.gradient)
    _require_noise(args, protection)
    client = build_client(
        network, args.input_shape, args.num_classes, seed=args.seed, dtype=args.dtype, parameters=shared.parameters,
        where=where, checkpoint=args.checkpoint, local=arguments.local(args), loss=args.loss,
        normalise=args.normalise, defence=protection.defence, shared=shared.gradient if args.shared_only else None,
    )  # fmt: skip
    require_batch_size(args.batch_size)
    sizes.require_batch(client, args.batch_size)
    if not shared.parameters and args.checkpoint is None:
        require_weights(client, network, where, seed=args.seed)
    gradient = sharing.dense(client.layers, sharing.by_owner(client.network, shared.gradient, where), where)
    with arguments.said_shared():
        g = flatten(client, gradient, where)
    protection = _noise(args, protection, gradient)
    client, labels = with_targets(client, args.shared_labels, args.batch_size)
    provenance = {"network": network.name, "network_settings": dict(network.settings), "normalise": args.normalise}
    return Observation(g, args.batch_size, labels, client, protection, provenance=provenance)


def _noise(args: Any, protection: Any, gradient: Any) -> Any:
    """The protection with the σ that was said, or that the numbers' rounding comes to."""
    from dataclasses import replace

    from pplleak.federation import files

    if args.clean or args.channel == "none":
        channel = protection.channel or Named("gaussian")
        return replace(protection, channel=channel.with_(sigma=files.rounding(gradient)))
    return protection


def _require_noise(args: Any, protection: Any) -> None:
    """Refuse a gradient of whose noise nothing is said: it is never assumed."""
    if args.clean or args.channel == "none":
        return
    if args.sigma is None and "sigma" not in options(args, "channel") and protection.sigma is not None:
        raise BadInput("how much noise is on this gradient? Say --sigma (of each entry), --sigma infer if "
                       "nobody knows, or --clean if none was added")  # fmt: skip
