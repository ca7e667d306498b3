"""Annealing over the categories of a record, thousands at once: where E(x) = ‖(I − P) [x, 1]‖² is least.

`pplleak.density.cell_spans` says of what P projects on. E is a quadratic form, whose minimum over the numeric entries z
at given categories c is one in these alone: z = −Q_zz⁺ Q_zc c for Q = I − P. Column by column, categories are drawn
∝ exp(−E / T) while T falls.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pplleak.data.columns import Columns
from pplleak.density import cell_starts

STARTS, SWEEPS = 4096, 40  # of an annealing, and visits to every column in it
HOT, COLD = 0.5, 1e-3  # temperatures, in units of E, in which one category for another is about 1


def choices_of(columns: Columns) -> list[tuple[Tensor, Tensor]]:
    """What is looked through: entries (w,) of x and the values (states, w) that they may have together, of each
    category and of each flag that a number is missing."""
    made = []
    for column in columns.finite:
        start = columns.starts[column.name]
        if column.kind == "categorical":
            made.append((torch.arange(start, start + column.width), column.rows()))
        elif column.missing:
            made.append((torch.tensor([start + 1]), torch.tensor([[0.0], [1.0]], dtype=torch.float64)))
    return made


def numbers_of(columns: Columns) -> Tensor:
    """The entries of x that are none of these."""
    return torch.tensor([columns.starts[c.name] for c in columns.varying if c.numeric], dtype=torch.long)


def ends(outside: Tensor, records: Any) -> Tensor:
    """Where annealing over the categories ends, each record once, (N, width), with the numbers that E is least for.

    Args:
        outside: I − P, (width + 1, width + 1), float64.
    """
    width = len(outside) - 1
    choices, numbers = choices_of(records.columns), numbers_of(records.columns).to(outside.device)
    words = torch.cat([entries for entries, _ in choices]).to(outside.device)
    kept = torch.cat([words, words.new_tensor([width])])
    solved = -torch.linalg.pinv(outside[numbers[:, None], numbers], hermitian=True) @ outside[numbers[:, None], kept]
    form = outside[kept[:, None], kept] + outside[kept[:, None], numbers] @ solved

    x = cell_starts.drawn(records, STARTS, 1).x[:, 0].double()
    c = torch.cat([x[:, words], x.new_ones(len(x), 1)], 1)
    pull, at = c @ form, 0
    blocks = []
    for entries, rows in choices:
        own = slice(at, at + len(entries))
        rows, at = rows.to(c), at + len(entries)
        blocks.append((own, rows, rows @ form[own, own] @ rows.mT, (c[:, own, None] - rows.mT).abs().sum(1).argmin(1)))
    states = [state for *_, state in blocks]
    for temperature in torch.logspace(math.log10(HOT), math.log10(COLD), SWEEPS).tolist():
        for k in torch.randperm(len(blocks)).tolist():
            own, rows, mixed, _ = blocks[k]
            now, along = states[k], pull[:, own] @ rows.mT
            rise = 2 * along + mixed.diagonal() - 2 * mixed[now]  # of E, up to what is the same for all states
            noise = -torch.empty_like(rise).exponential_().log()
            new = (noise - rise / temperature).argmax(1)
            states[k], pull = new, pull + (rows[new] - rows[now]) @ form[own]
    c = torch.cat([*(rows[state] for (_, rows, _, _), state in zip(blocks, states, strict=True)), c[:, -1:]], 1)
    c = torch.unique(c, dim=0)
    x = c.new_zeros(len(c), width)
    x[:, words], x[:, numbers] = c[:, :-1], c @ solved.mT
    return x
