"""The result of an attack: draws, diagnostics, decisions."""

from pplleak.posterior.collection import collect, read_off
from pplleak.posterior.posterior import Posterior

__all__ = ["Posterior", "collect", "read_off"]
