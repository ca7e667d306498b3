"""A density recorded once and replayed: what a sampler calls thousands of times."""
