"""Audit: what do recorded updates give away? Many observations, each attacked as far as a budget of time goes."""
