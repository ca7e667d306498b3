"""The result of an attack: draws, diagnostics, decisions."""

from pplleak.posterior.posterior import Posterior, collect

__all__ = ["Posterior", "collect"]
