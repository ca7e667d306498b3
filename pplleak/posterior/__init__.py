"""The result of an attack: draws, diagnostics, decisions."""

from pplleak.posterior.collection import collect, in_range, read_off
from pplleak.posterior.posterior import Posterior

__all__ = ["Posterior", "collect", "in_range", "read_off"]
