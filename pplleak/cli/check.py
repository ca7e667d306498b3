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
    from pplleak.studies.crafted import crafted

    alarm = False
    for path in args.weights:
        found = crafted.suspicions(tensors.read(path)[0])
        alarm, file = alarm or bool(found), printable(path)
        for s in found:
            print(f"{file}: {s.rows} of the {s.of} rows of '{printable(s.layer)}' point the same way. They sort a "
                  "batch into bins, and the gradient of a bin is an example: do not train on it")  # fmt: skip
        if not found:
            print(f"{file}: no layer measures one thing over and over. Weights may be malicious in other ways: attack "
                  "an update of your own with `pplleak audit`")  # fmt: skip
    return 3 if alarm else 0
