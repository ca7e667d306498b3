"""How often a reconstruction is near enough, claimed and realised, and what bounds it."""
