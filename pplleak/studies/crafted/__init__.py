"""Weights that a malicious server crafts, and how a client may notice them."""
