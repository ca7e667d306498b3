"""Attack one observation with a model and an inference."""
