"""The network of your client, as a function: the attack rebuilds it and loads the shared weights into it."""

from torch import nn


def build(input_shape: tuple[int, ...], num_classes: int, *, width: int = 48) -> nn.Module:
    """Args:
    width: units of the hidden layer.
    """
    channels, rows, columns = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(8 * rows * columns, width),
        nn.SiLU(),
        nn.Linear(width, num_classes),
    )
