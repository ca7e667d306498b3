"""The ResNet for tables of Gorishniy et al. 2021: fully connected residual blocks behind BatchNorm."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pplleak.client.networks._activations import Activation, activated
from pplleak.client.networks._mode import Mode


def tabular_resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int = 64,
    hidden: int = 128,
    depth: int = 2,
    batch_norm: Mode = "eval",
    activation: Activation = "gelu",
) -> nn.Module:
    """The ResNet for tables of Gorishniy et al. 2021: fully connected residual blocks behind BatchNorm.

        h ← W x + b;    h ← h + W₂ act(W₁ BatchNorm(h) + b₁) + b₂, `depth` times;    W₃ act(BatchNorm(h)) + b₃

    (their section 3.2, without dropout.)

    Args:
        width: features between the blocks.
        hidden: units within a block.
        depth: blocks.
        batch_norm: eval normalises by running statistics, which are 0 and 1 before any training; train by those of
            the client's own batch, which ties its examples to each other.
        activation: the non-linearity; relu, theirs, makes the posterior discontinuous.
    """
    blocks = [_Block(width, hidden, activation) for _ in range(depth)]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), width), *blocks, nn.BatchNorm1d(width), activated(activation),
        nn.Linear(width, num_classes),
    ).train(batch_norm == "train")  # fmt: skip


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.norm, self.up, self.act = nn.BatchNorm1d(width), nn.Linear(width, hidden), activated(activation)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.act(self.up(self.norm(x))))
        return out
