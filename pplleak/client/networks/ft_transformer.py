"""FT-Transformer: every column of a table is a token, and a class token attends to them (Gorishniy et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplleak.client.networks._activations import Activation, activated
from pplleak.errors import BadInput


def ft_transformer(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    blocks: tuple[int, ...] = (),
    width: int = 32,
    depth: int = 2,
    heads: int = 4,
    activation: Activation = "gelu",
) -> nn.Module:
    """FT-Transformer: every column of a table is a token, and a class token attends to them (Gorishniy et al. 2021).

        T_j = b_j + Σ_k x_jk W_jk    of column j, whose encoding is x_j: one number, or one-hot (their section 3.3)

    then `depth` blocks, T + attention(norm T) and T + feed-forward(norm T), the first one without its first
    normalisation, and the class token's last state, normalised, through the activation and a linear layer. Feed-forward
    is gated, (a · act(b)) W: with `relu` their ReGLU. No dropout.

    Args:
        blocks: entries of each column's encoding; (): those of the table that is attacked, else one each.
        width: features of a token; the heads divide it.
        depth: encoder blocks.
        heads: attention heads.
        activation: the non-linearity; relu makes the posterior discontinuous.
    """
    entries = int(torch.Size(input_shape).numel())
    sizes = blocks or (1,) * entries
    if min(sizes) < 1 or sum(sizes) != entries:
        raise BadInput(f"ft_transformer was given columns of {sum(sizes)} entries, and a record has {entries}: leave "
                       "blocks out")  # fmt: skip
    if width % heads:
        raise BadInput(f"ft_transformer splits its width over the heads, and {width} is no multiple of {heads}")
    return nn.Sequential(
        nn.Flatten(), _Tokens(sizes, width), *(_Block(width, heads, activation, first=k == 0) for k in range(depth)),
        _Head(width, num_classes, activation),
    )  # fmt: skip


class _Tokens(nn.Module):
    """x (N, Σ sizes) -> tokens (N, columns + 1, width), the class token first."""

    def __init__(self, sizes: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.columns = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.label = nn.Parameter(torch.empty(1, 1, width))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        each = [column(part) for column, part in zip(self.columns, x.split(self.sizes, 1), strict=True)]
        return torch.cat([self.label.expand(len(x), -1, -1), torch.stack(each, 1)], 1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, activation: Activation, first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.Identity() if first else nn.LayerNorm(width)
        self.query, self.key, self.value, self.mixed = (nn.Linear(width, width) for _ in range(4))
        self.between = nn.LayerNorm(width)
        hidden = 4 * width // 3  # the size at which a gated layer has as many weights as theirs
        self.plain, self.gate, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.act = activated(activation)

    def forward(self, tokens: Tensor) -> Tensor:
        t = self.before(tokens)
        q, k, v = (
            layer(t).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        tokens = tokens + self.mixed(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        t = self.between(tokens)
        out: Tensor = tokens + self.down(self.plain(t) * self.act(self.gate(t)))
        return out


class _Head(nn.Module):
    def __init__(self, width: int, num_classes: int, activation: Activation) -> None:
        super().__init__()
        self.norm, self.act, self.out = nn.LayerNorm(width), activated(activation), nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out(self.act(self.norm(tokens[:, 0])))
        return logits
