"""Write the report of an earlier attack or audit: one HTML file that opens anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from pplleak.cli._options import parse
from pplleak.progress import terminal


@dataclasses.dataclass(frozen=True)
class Report:
    folder: Annotated[Path, tyro.conf.Positional]
    """Where `pplleak attack` or `pplleak audit` wrote its results; report.html is written there."""


def run(argv: Sequence[str]) -> int:
    args = parse(Report, "report", argv)

    from pplleak.studies.audit import report

    for line in report.write(args.folder):
        terminal().print(line, highlight=False, soft_wrap=True)
    terminal().print(f"written to {args.folder / report.FILE}", highlight=False, soft_wrap=True)
    return 0
