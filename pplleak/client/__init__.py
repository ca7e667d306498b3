"""The victim: its network, its loss and the update that it computes."""

from pplleak.client.client import Client, distrust, extended, seeded

__all__ = ["Client", "distrust", "extended", "seeded"]
