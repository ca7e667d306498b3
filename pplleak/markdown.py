"""Tables in Markdown: of the page about the models, and of what benchmarks write."""

from __future__ import annotations

from collections.abc import Sequence


def table(lines: Sequence[Sequence[str]]) -> str:
    r"""A table whose first line is its head, without a newline at the end.

    >>> print(table([["network", "p(g | x, y)"], ["mlp", "normal"]]))
    | network | p(g \| x, y) |
    | --- | --- |
    | mlp | normal |
    """
    head, *body = ("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
    return "\n".join([head, "|" + " --- |" * len(lines[0]), *body])
