"""Where a ReLU network jumps, and what crosses the jumps."""
