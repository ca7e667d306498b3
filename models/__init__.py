"""Generative programs, one a file: what the adversary believes."""
