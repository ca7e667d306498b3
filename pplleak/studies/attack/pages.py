"""report.html of what is no image: records (`records`), sentences (`sentences`). Everything in it is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pplleak import runs
from pplleak.data.columns import Columns
from pplleak.errors import printable
from pplleak.posterior import Posterior, cells
from pplleak.posterior.summary import colour, verdict
from pplleak.studies.attack import records

FILE = "report.html"
MOST = 50  # records that the page has in full
LETTERS = 80  # of a value
SAID = ("data", "network", "path", "protection", "model", "inference", "seed", "command")


def template(folder: str, name: str, **more: Any) -> Any:
    """A page of the templates of a study, which may take parts of those of an attack; everything in it is escaped.
    more: of the environment."""
    import jinja2

    places = [jinja2.PackageLoader(f"pplleak.studies.{f}") for f in dict.fromkeys((folder, "attack"))]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(places), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, **more,
    ).get_template(name)  # fmt: skip


def rendered(name: str, posterior: Posterior, summary: dict[str, Any], **parts: Any) -> str:
    """A page of the folder `templates`, with the verdict and where the result comes from."""
    said = {n: summary.get(n) if summary.get(n) is not None else posterior.attrs.get(n) for n in SAID}
    page: str = template("attack", name).render(
        verdict=verdict(summary), colour=colour(summary),
        provenance=[(n, printable(v, 400)) for n, v in said.items() if v is not None], **parts,
    )  # fmt: skip
    return page


def of_records(posterior: Posterior, summary: dict[str, Any], columns: Columns, heading: str, out: Path) -> None:
    """report.html of a table's records into `out`: each cell with its truth, estimate, probability and interval; the
    chance that so many cells of a record are right; whether claims are right as often as they say."""
    found, sure, shown = cells.cells(posterior, columns), posterior.kind != "point", shown_records(posterior, columns)
    right = found.right
    text = rendered(
        "records.html", posterior, summary, heading=heading, known=right is not None, sure=sure,
        records=shown[:MOST], more=max(0, len(shown) - MOST), chances=_chances(found) if sure else [],
        reliability=[(f"{p:.0%}", f"{r:.0%}", n) for p, r, n in cells.reliability(found.probability, right)]
        if sure and right is not None else [],
        numbers=[(said, form.format(summary[n])) for n, (said, form) in records.ROWS.items()
                 if summary.get(n) is not None],
    )  # fmt: skip
    runs.text(out / FILE, text)


def shown_records(posterior: Posterior, columns: Columns) -> list[dict[str, Any]]:
    """The records as a page has them."""
    rows, width = cells.rows(posterior, columns), len(columns.varying)
    return [_record(rows[k : k + width]) for k in range(0, len(rows), width)]


def _record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A record as the page has it; `known` is "" where no truth is."""
    made = [
        {"column": printable(r["column"], LETTERS), "truth": printable(r["truth"], LETTERS),
         "estimate": printable(r["estimate"], LETTERS), "interval": r["interval"],
         "percent": None if r["probability"] is None else round(100 * r["probability"]),
         "state": {True: "right", False: "wrong", None: ""}[r["right"]]}
        for r in rows
    ]  # fmt: skip
    known = "" if rows[0]["right"] is None else str(sum(r["right"] for r in rows))
    return {"cells": made, "known": known}


def _chances(found: cells.Cells) -> list[tuple[int, str]]:
    """P(at least k cells of a record are right), from half of them on."""
    assert found.agreeing is not None
    width = len(found.columns.varying)
    return [(k, f"{float(np.mean(found.agreeing >= k)):.0%}") for k in range((width + 1) // 2, width + 1)]
