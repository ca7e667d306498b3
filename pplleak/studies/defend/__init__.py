"""What protects, when, at which cost."""
