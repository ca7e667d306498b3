"""The victim: its network, its loss and the update that it computes."""

from pplleak.client.client import Client, extended
from pplleak.client.smoothness import distrust
from pplleak.client.weights import seeded

__all__ = ["Client", "distrust", "extended", "seeded"]
