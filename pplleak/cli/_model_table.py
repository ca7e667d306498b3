"""The table of the adversaries: what each file of models/ believes, where that stands, and how its MAP climbs.

Read off the files without running them. The convention, which `pplleak cp` hands on:

    x ~ …, x = …           a line for each site, as in the files that are there; those before g, but y, are p(x)
    g | x, y ~ …           p(g | x, y)
    Source: …              the paper and its equation, in one line of the docstring
    MAP = {"optimizer": …} a module constant, where the paper's optimiser is not the default one
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplleak import programs
from pplleak.errors import BadInput
from pplleak.markdown import table

COLUMNS = ("model", "p(x)", "p(g | x, y)", "source", "optimiser of its MAP")


@dataclass(frozen=True)
class Row:
    """A model file: its name, p(x), p(g | x, y), the source of its equation, the optimiser of its MAP."""

    name: str
    prior: str
    likelihood: str
    source: str
    optimiser: str


def row(path: Path) -> Row:
    """What one model file says of itself; raises BadInput where a column is missing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    doc = ast.get_docstring(tree) or ""
    equations = [
        re.split(r" {2,}", line)[0] for line in doc.splitlines() if re.match(r"[\w(),]+(_\w+)?( .*)?[~=∝] ", line)
    ]
    likelihood = [e for e in equations if re.match(r"g\W|g_", e)]
    first = next((k for k, e in enumerate(equations) if e in likelihood), 0)
    prior = [e for e in equations[:first] if not e.startswith("y ")]
    source = re.search(r"^Source: (.+)$", doc, re.MULTILINE)
    missing = [n for n, v in (("x ~ …", prior), ("g | x, y ~ …", likelihood), ("Source: …", source)) if not v]
    if missing or source is None:
        raise BadInput(f"{path}: its docstring has no line '{missing[0]}', which the table of models is made of")
    return Row(path.stem, "; ".join(prior), likelihood[0], source[1].rstrip("."), _optimiser(tree))


def _optimiser(tree: ast.Module) -> str:
    """The settings of inference/map.py for this model: its own `MAP`, over the defaults."""
    settings: dict[str, Any] = {s.name: s.default for s in programs.described("inference", "map") or ()}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        if (
            [ast.unparse(t) for t in targets] == ["MAP"]
            and isinstance(node, (ast.Assign, ast.AnnAssign))
            and node.value
        ):
            settings |= ast.literal_eval(node.value)
    name = str(settings.pop("optimizer"))
    return f"{name}, " + ", ".join(f"{n} {v}" for n, v in settings.items() if v is not None)


def rows() -> list[Row]:
    """Every file of models/, by name."""
    return [row(programs.locate("models", name)) for name in programs.names("models")]


def markdown() -> str:
    """The table in Markdown."""
    body = [(f"`{r.name}`", f"`{r.prior}`", f"`{r.likelihood}`", r.source, r.optimiser) for r in rows()]
    return table([COLUMNS, *body])


def inferences() -> str:
    """The inferences that come from somewhere, in Markdown: those whose docstring has a paragraph `Source: …`."""
    found = [("inference", "what it does", "source")]
    for name, line in programs.names("inference").items():
        doc = ast.get_docstring(ast.parse(programs.locate("inference", name).read_text(encoding="utf-8"))) or ""
        source = re.search(r"^Source: (.+?)(?:\n\n|\Z)", doc, re.MULTILINE | re.DOTALL)
        if source is not None:
            found.append((f"`{name}`", line, " ".join(source[1].split()).rstrip(".")))
    return table(found)
