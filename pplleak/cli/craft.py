"""Write weights that a malicious server hands out: a first layer that tells the examples of a batch apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pplleak.cli._options import DataName, NetworkName, given, groups, helps, options, parse, said
from pplleak.errors import printable
from pplleak.settings import Named


@dataclasses.dataclass(frozen=True)
class Craft:
    data: DataName = "digits"
    """Whose public half says how bright images are."""
    data_root: Path | None = None
    """Folder that holds MNIST/raw or cifar10/ (default: $PPLLEAK_DATA_ROOT, else ./data)."""
    network: NetworkName = "mlp"
    checkpoint: Path | None = None
    """Weights of the other layers: a safetensors file (default: weights drawn from --seed)."""
    seed: int = 0
    """Of the weights."""
    out: Path = Path("crafted.safetensors")
    """The file to write."""


def run(argv: Sequence[str]) -> int:
    if given(argv, "--network", "mlp") == "mlp" and not said(argv, "--network.activation") and not helps(argv):
        argv = [*argv, "--network.activation", "relu"]  # the default network, where it can be crafted
    args = parse(Craft, "craft", argv, groups(Craft, argv, "network"))
    from pplleak import data, runs
    from pplleak.federation.scenario import Scenario, client_of
    from pplleak.studies.crafted import crafted

    named = Named(args.network, options(args, "network"))
    client = client_of(Scenario(args.data, args.data_root, network=named, checkpoint=args.checkpoint, seed=args.seed))
    made = crafted.imprinted(client, data.public(args.data, args.data_root).x, args.seed)
    runs.tensors(args.out, made, {})
    units = client.layers[next(iter(client.layers))][0]
    out = printable(args.out)
    print(f"written to {out}: {units} bins of brightness; an example of a batch of 8 is alone in its bin with "
          f"probability {(1 - 1 / units) ** 7:.2f}, of 64 with {(1 - 1 / units) ** 63:.2f}")  # fmt: skip
    print(f"what a client shares of it: pplleak attack --checkpoint {out} --network {named} --batch-size 8 "
          f"--sigma 1e-9 --inference imprint; what a client sees: pplleak check {out}")  # fmt: skip
    return 0
