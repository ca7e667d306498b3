"""Write weights that a malicious server hands out: with them, a batch's gradient tells its examples apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pplleak.cli._options import DataName, NetworkName, given, groups, helps, options, parse, said
from pplleak.errors import printable
from pplleak.settings import Named

if TYPE_CHECKING:
    from pplleak.client import Client


@dataclasses.dataclass(frozen=True)
class Craft:
    attack: Literal["imprint", "seer"] = "imprint"
    """imprint: bins of brightness (Robbing the Fed); seer: weights trained with a secret decoder (SEER)."""
    data: DataName = "digits"
    """Whose public half says how bright images are."""
    data_root: Path | None = None
    """Folder that holds MNIST/raw or cifar10/ (default: $PPLLEAK_DATA_ROOT, else ./data)."""
    network: NetworkName = "mlp"
    checkpoint: Path | None = None
    """Weights of the other layers: a safetensors file (default: weights drawn from --seed)."""
    seed: int = 0
    """Of the weights."""
    batch_size: int = 8
    """Of the batches that seer is trained for."""
    steps: int = 4000
    """Of seer's training."""
    decoder: Path = Path("decoder.safetensors")
    """The file of seer's decoder, which the server keeps."""
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
    if args.attack == "seer":
        return _seer(args, named, client)
    made = crafted.imprinted(client, data.public(args.data, args.data_root).x, args.seed)
    runs.tensors(args.out, made, {})
    units = client.layers[next(iter(client.layers))][0]
    out = printable(args.out)
    print(f"written to {out}: {units} bins of brightness; an example of a batch of 8 is alone in its bin with "
          f"probability {(1 - 1 / units) ** 7:.2f}, of 64 with {(1 - 1 / units) ** 63:.2f}")  # fmt: skip
    print(f"what a client shares of it: pplleak attack --checkpoint {out} --network {named} --batch-size 8 "
          f"--sigma 1e-9 --inference imprint; what a client sees: pplleak check {out}")  # fmt: skip
    return 0


def _seer(args: Craft, named: Named, client: Client) -> int:
    from pplleak import data, runs
    from pplleak.progress import bar
    from pplleak.studies.crafted import seer

    public = data.public(args.data, args.data_root)
    made = seer.train(client, public.x, public.y, batch_size=args.batch_size, steps=args.steps, seed=args.seed,
                      progress=bar)  # fmt: skip
    runs.tensors(args.out, made.weights, {})
    runs.tensors(args.decoder, made.decoder, {})
    out, decoder = printable(args.out), printable(args.decoder)
    seen, mean = (f"{-10 * math.log10(v):.1f}" for v in (made.loss, made.baseline))
    print(f"written to {out} and {decoder}: the brightest of {args.batch_size} public images comes out with {seen} dB, "
          f"where their mean has {mean}")  # fmt: skip
    print(f"what it decodes of a client: pplleak attack --checkpoint {out} --network {named} --batch-size "
          f"{args.batch_size} --sigma 1e-9 --inference seer --inference.decoder {decoder}; what a client sees: pplleak "
          f"check {out}")  # fmt: skip
    return 0
