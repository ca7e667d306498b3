"""MAP against the full posterior, on the same images."""
