"""The result of an attack: draws, diagnostics, decisions."""

from pplleak.posterior.collection import collect
from pplleak.posterior.posterior import Posterior

__all__ = ["Posterior", "collect"]
