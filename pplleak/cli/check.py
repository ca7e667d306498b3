"""Look at the weights that a server sent, before training on them: were they crafted to separate examples?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from pplleak.cli._options import parse
from pplleak.errors import printable


@dataclasses.dataclass(frozen=True)
class Check:
    weights: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Safetensors files of a state_dict."""


def run(argv: Sequence[str]) -> int:
    """Exit code 3 where a file looks crafted."""
    args = parse(Check, "check", argv)
    from pplleak import tensors
    from pplleak.federation import malicious

    crafted = False
    for path in args.weights:
        found = malicious.suspicions(tensors.read(path)[0])
        crafted |= bool(found)
        for s in found:
            print(f"{path}: {s.rows} of the {s.of} rows of '{printable(s.layer)}' point the same way: they sort the "
                  "examples of a batch into bins, and their gradients are the examples. Do not train on it.")  # fmt: skip
        if not found:
            print(f"{path}: no layer measures one thing over and over. Weights may be malicious in other ways: attack an "
                  "update of your own with `pplleak audit`")  # fmt: skip
    return 3 if crafted else 0
