"""How many bits about its inputs one shared update carries, on average over the model."""
