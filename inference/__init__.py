"""Inference algorithms, one a file: how well the adversary computes with what it believes."""
